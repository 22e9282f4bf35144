// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/pause` and `/v1/resume`.

use log::info;

use super::context::{Answer, Context};
use super::waits::once_over;
use crate::control::http::Response;
use crate::control::views::PausedView;
use crate::discard::Cause;

/// `POST /v1/pause`
pub(super) fn pause(context: &Context<'_>) -> Answer {
    context.no_body()?;
    let ticket = context.state.inhibit.forbid(Cause::Operator);
    info!("paused, by {}", context.peer);
    let answer = |state: &_| Response::json(&PausedView::of(state));
    Ok(once_over(context.state, ticket, "paused", answer))
}

/// `POST /v1/resume`
pub(super) fn resume(context: &Context<'_>) -> Answer {
    context.no_body()?;
    context.state.inhibit.lift(Cause::Operator);
    info!("resumed, by {}", context.peer);
    Ok(Response::json(&PausedView::of(context.state)).into())
}
