// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/reclaim`, `/v1/park` and `/v1/unpark`.

use log::info;

use serde::Serialize;

use super::context::{Answer, Context};
use super::statistics::asked_for_statistics;
use crate::control::http::Response;
use crate::control::reclaim::{EXAMPLE, ReclaimRequest, Running};
use crate::control::reply::{Later, Reply};
use crate::control::views::PausedView;
use crate::device::Stop;
use crate::discard::Cause;

/// `POST /v1/reclaim`
pub(super) fn reclaim(context: &Context<'_>) -> Answer {
    reclaim_then(context, false)
}

/// `POST /v1/park`
pub(super) fn park(context: &Context<'_>) -> Answer {
    reclaim_then(context, true)
}

fn reclaim_then(context: &Context<'_>, parks: bool) -> Answer {
    let request = match context.request.body {
        [] => ReclaimRequest::default(),
        _ => context.body(EXAMPLE)?,
    };
    asked_for_statistics(context.state)?;
    Ok(Reply::Later(Later::work(Running::start(context.state, request, parks, context.peer)?)))
}

/// What became of an interruption.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct InterruptView {
    /// Always true: without a reclaim the request is refused.
    interrupted: bool,
}

/// `DELETE /v1/reclaim`
pub(super) fn interrupt(context: &Context<'_>) -> Answer {
    context.no_body()?;
    if !context.state.balloon.stop_squeeze(Stop::Interrupted) {
        return Err(Response::error(409, "no reclaim is in progress"));
    }
    info!("reclaim: interrupted, by {}", context.peer);
    Ok(Response::json(&InterruptView { interrupted: true }).into())
}

/// `POST /v1/unpark`
pub(super) fn unpark(context: &Context<'_>) -> Answer {
    context.no_body()?;
    context.state.inhibit.lift(Cause::Parked);
    info!("unparked, by {}", context.peer);
    Ok(Response::json(&PausedView::of(context.state)).into())
}
