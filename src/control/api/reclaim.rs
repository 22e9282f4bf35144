// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/reclaim`, `/v1/park` and `/v1/unpark`.

use log::info;

use super::context::{Answer, Context};
use super::statistics::asked_for_statistics;
use crate::control::http::Response;
use crate::control::reclaim::{EXAMPLE, ReclaimRequest, Running};
use crate::control::reply::{Later, Reply};
use crate::control::views::PausedView;
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

/// `POST /v1/unpark`
pub(super) fn unpark(context: &Context<'_>) -> Answer {
    context.no_body()?;
    context.state.inhibit.lift(Cause::Parked);
    info!("unparked, by {}", context.peer);
    Ok(Response::json(&PausedView::of(context.state)).into())
}
