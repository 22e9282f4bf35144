// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/hinting`: rounds of free page hinting.

use log::info;

use super::context::{Answer, Context, NO_DRIVER, NO_FRONTEND, conflict, unavailable};
use crate::control::http::Response;
use crate::control::views::HintingView;

/// `POST /v1/hinting/start`
pub(super) fn start(context: &Context<'_>) -> Answer {
    context.no_body()?;
    let state = context.state;
    state.frontend().ok_or_else(|| conflict(NO_FRONTEND))?;
    // A round that no driver begins would never end.
    let runs = state.driver().runs();
    state.balloon.check_hinting().map_err(conflict)?;
    if !runs {
        return Err(conflict(NO_DRIVER));
    }
    state.balloon.start_hinting().map_err(conflict)?;
    if let Err(error) = state.announce_change() {
        // The driver may have seen it even so; what it hints then is turned down.
        let _ = state.balloon.stop_hinting();
        return Err(unavailable("cannot ask the guest for hints", &error));
    }
    info!("hinting started, by {}", context.peer);
    Ok(Response::json(&HintingView::of(state)).into())
}

/// `POST /v1/hinting/stop`
pub(super) fn stop(context: &Context<'_>) -> Answer {
    context.no_body()?;
    let state = context.state;
    state.balloon.stop_hinting().map_err(conflict)?;
    info!("hinting stopped, by {}", context.peer);
    // Its pages are its own again, and it is to know as soon as it can be told.
    state.announce_change().map_err(|error| {
        unavailable("hints are ignored from now on, but the guest cannot be notified", &error)
    })?;
    Ok(Response::json(&HintingView::of(state)).into())
}
