// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/counters`: what the daemon did, since an operator last reset it.

use log::info;

use super::context::{Answer, Context};
use crate::control::counters::CountersView;
use crate::control::http::Response;
use crate::state::State;

/// `GET /v1/counters`
pub(super) fn show(context: &Context<'_>) -> Answer {
    context.no_body()?;
    Ok(view(context.state).into())
}

/// `POST /v1/counters/reset`
pub(super) fn reset(context: &Context<'_>) -> Answer {
    context.no_body()?;
    context.state.counters.reset();
    info!("counters reset, by {}", context.peer);
    Ok(view(context.state).into())
}

fn view(state: &State) -> Response {
    Response::json(&CountersView::of(&state.counters.since_reset()))
}
