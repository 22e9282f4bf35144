// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asks one daemon for all that the table shows of it.

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::time;
use vhost_device_balloon::operator::{SampleView, StatisticsView};

use super::row::{Look, is_fresh};
use crate::sockets::{AskError, Daemon};

/// How long a guest may take for its statistics. A guest that is paused sends none.
const GUEST_WITHIN: Duration = Duration::from_millis(500);
/// How often to look whether they have come.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The feature without which a guest has none.
const STATISTICS: &str = "stats_vq";

/// Looks at a daemon once. With `asks_guest` the guest is asked for its statistics, if it sends any.
///
/// # Errors
/// [`AskError`], in words.
pub(super) async fn look(daemon: Daemon, asks_guest: bool) -> Result<Look, String> {
    seen(&daemon, asks_guest).await.map_err(|error| in_words(&error))
}

async fn seen(daemon: &Daemon, asks_guest: bool) -> Result<Look, AskError> {
    let status = daemon.status().await?;
    let sends = |name: &String| name == STATISTICS;
    let runs = status.queues.iter().any(|queue| queue.runs);
    let has = runs && status.acked_features.iter().flatten().any(sends);
    let sample = if has && asks_guest { asked(daemon).await? } else { last(daemon).await? };
    let counters = daemon.get("/v1/counters").await?;
    Ok(Look { at: Instant::now(), status, counters, sample })
}

async fn last(daemon: &Daemon) -> Result<Option<SampleView>, AskError> {
    Ok(daemon.get::<StatisticsView>("/v1/statistics").await?.sample)
}

/// The guest's statistics: new ones, or the last ones if it does not send them in time.
async fn asked(daemon: &Daemon) -> Result<Option<SampleView>, AskError> {
    let since = Instant::now();
    match daemon.ask("POST", "/v1/statistics/refresh", None).await {
        // The driver has stopped meanwhile.
        Ok(_) | Err(AskError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    loop {
        let sample = last(daemon).await?;
        let waited = since.elapsed();
        if waited > GUEST_WITHIN || is_fresh(sample.as_ref(), waited) {
            return Ok(sample);
        }
        time::sleep(LOOK_EVERY).await;
    }
}

/// An error with its causes.
pub(super) fn in_words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
