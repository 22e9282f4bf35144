// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/statistics` and `/v1/statistics-interval`: what the guest says of its memory, and when it is asked.

use std::sync::Arc;
use std::time::Duration;

use log::info;
use serde::{Deserialize, Serialize};

use super::context::{Answer, Context, NO_DRIVER, NO_FRONTEND, conflict, unavailable};
use crate::control::http::Response;
use crate::control::views::StatisticsView;
use crate::device::IntervalError;
use crate::state::{Frontend, State};

/// `VIRTIO_BALLOON_F_STATS_VQ`.
const STATS_VQ: u32 = 1;

/// `GET /v1/statistics`
pub(super) fn show(context: &Context<'_>) -> Answer {
    context.no_body()?;
    Ok(Response::json(&StatisticsView::of(context.state)).into())
}

/// `POST /v1/statistics/refresh`
pub(super) fn refresh(context: &Context<'_>) -> Answer {
    context.no_body()?;
    let frontend = asked_for_statistics(context.state)?;
    frontend
        .poll_statistics()
        .map_err(|error| unavailable("cannot ask the guest for its statistics", &error))?;
    Ok(Response::json(&StatisticsView::of(context.state)).into())
}

/// The frontend, if its guest can be asked for statistics.
///
/// # Errors
/// The answer that says why not.
pub(super) fn asked_for_statistics(state: &State) -> Result<Arc<dyn Frontend>, Response> {
    if !state.balloon.options().statistics {
        return Err(conflict(
            "statistics are not offered to the guest: start the daemon with --statistics",
        ));
    }
    let frontend = state.frontend().ok_or_else(|| conflict(NO_FRONTEND))?;
    if state.balloon.session_features().is_none_or(|acked| acked >> STATS_VQ & 1 == 0) {
        return Err(conflict(
            "the guest driver has not acked statistics (VIRTIO_BALLOON_F_STATS_VQ)",
        ));
    }
    if !state.driver().runs() {
        return Err(conflict(NO_DRIVER));
    }
    Ok(frontend)
}

/// The interval between two polls of the statistics.
#[derive(Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct IntervalView {
    /// Seconds between two polls; 0 for never.
    pub seconds: u32,
}

/// `GET /v1/statistics-interval`
pub(super) fn show_interval(context: &Context<'_>) -> Answer {
    context.no_body()?;
    // Nothing longer than a day can be set.
    let seconds = context.state.balloon.statistics_interval().as_secs();
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
    Ok(Response::json(&IntervalView { seconds }).into())
}

/// `PUT /v1/statistics-interval`
pub(super) fn set_interval(context: &Context<'_>) -> Answer {
    let interval: IntervalView = context.body(r#"{"seconds": 10}"#)?;
    let duration = Duration::from_secs(interval.seconds.into());
    let set = context.state.balloon.set_statistics_interval(duration);
    set.map_err(|error| match error {
        IntervalError::OutOfRange(_) => Response::error(400, error.to_string()),
        IntervalError::NotOffered => conflict(error),
    })?;
    info!("statistics interval {} s, by {}", interval.seconds, context.peer);
    Ok(Response::json(&interval).into())
}
