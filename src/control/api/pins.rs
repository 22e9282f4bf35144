// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/pins`: memory that is never discarded.

use log::info;
use serde::{Deserialize, Serialize};

use super::context::{Answer, Context, conflict};
use super::waits::once_over;
use crate::control::http::Response;
use crate::control::views::PinsView;
use crate::discard::{GuestRange, PinError};

/// Memory to pin, or to unpin; the answer repeats it.
#[derive(Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct PinBody {
    /// Guest physical address.
    address: u64,
    /// Length in bytes.
    bytes: u64,
}

impl PinBody {
    fn read(context: &Context<'_>) -> Result<(Self, GuestRange), Response> {
        let memory: Self = context.body(r#"{"address": 4294967296, "bytes": 1048576}"#)?;
        let range = GuestRange::new(memory.address, memory.bytes)
            .map_err(|error| Response::error(400, format!("expected memory, not {error}")))?;
        Ok((memory, range))
    }
}

/// `GET /v1/pins`
pub(super) fn show(context: &Context<'_>) -> Answer {
    context.no_body()?;
    Ok(Response::json(&PinsView::of(context.state)).into())
}

/// `PUT /v1/pins`
pub(super) fn pin(context: &Context<'_>) -> Answer {
    let (memory, range) = PinBody::read(context)?;
    let ticket = context.state.inhibit.pin(range).map_err(conflict)?;
    info!("pinned {:#x}..{:#x}, by {}", range.start(), range.end(), context.peer);
    let done = "pinned once more";
    Ok(once_over(context.state, ticket, done, move |_| Response::json(&memory)))
}

/// `DELETE /v1/pins`
pub(super) fn unpin(context: &Context<'_>) -> Answer {
    let (memory, range) = PinBody::read(context)?;
    context.state.inhibit.unpin(range).map_err(|error| {
        let status = if matches!(error, PinError::NotPinned { .. }) { 404 } else { 409 };
        Response::error(status, error.to_string())
    })?;
    info!("unpinned {:#x}..{:#x}, by {}", range.start(), range.end(), context.peer);
    Ok(Response::json(&memory).into())
}
