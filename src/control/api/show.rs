// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/status` and `/metrics`: the whole picture, as JSON and for Prometheus.

use super::context::{Answer, Context};
use super::waits::with_resident_bytes;
use crate::control::http::Response;
use crate::control::views::StatusView;
use crate::control::{exposition, plain_text};

/// `GET /v1/status`
pub(super) fn status(context: &Context<'_>) -> Answer {
    context.no_body()?;
    Ok(with_resident_bytes(context.state, |state, bytes| {
        Response::json(&StatusView::of(state, bytes))
    }))
}

/// `GET /metrics`
pub(super) fn metrics(context: &Context<'_>) -> Answer {
    context.no_body()?;
    let openmetrics = context.request.openmetrics;
    Ok(with_resident_bytes(context.state, move |state, bytes| {
        let text = match exposition::text(state, bytes) {
            Ok(text) => text,
            Err(error) => return Response::error(500, error.to_string()),
        };
        let (content_type, body) = match openmetrics {
            true => (exposition::CONTENT_TYPE, text),
            false => (plain_text::CONTENT_TYPE, plain_text::from_openmetrics(&text)),
        };
        Response { status: 200, content_type, allow: None, body }
    }))
}
