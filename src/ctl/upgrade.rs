// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl upgrade`: asks for it, and waits until the next daemon serves.

use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::LOOK_EVERY;
use crate::control::client::{Client, ClientError};
use crate::control::views::StatusView;
use crate::hand_over::VERSION;

/// What became of an upgrade.
#[derive(Debug, Deserialize, Serialize)]
struct Upgraded {
    /// Version of the daemon that handed over.
    from_version: String,
    /// Version of the one that goes on.
    version: String,
    /// Its process.
    pid: u32,
    /// Seconds until it served.
    seconds: f64,
    /// The new program did not serve, and the one before goes on.
    went_back: bool,
}

/// Asks for the upgrade and waits for its end.
pub(super) fn answer(client: &Client, timeout: Duration) -> Result<String, ClientError> {
    let status = |answer: String| {
        serde_json::from_str::<StatusView>(&answer)
            .map_err(|error| ClientError::NotAnAnswer(error.to_string()))
    };
    let before = status(client.ask("GET", "/v1/status", None)?)?;
    // This client is most often the new program itself.
    let takes = serde_json::json!({ "state_version": VERSION });
    client.ask("POST", "/v1/upgrade", Some(&takes))?;
    let asked = Instant::now();
    while asked.elapsed() < timeout {
        // Between two daemons a connection waits, or breaks.
        let now = client.ask("GET", "/v1/status", None).and_then(status);
        if let Ok(now) = now
            && now.pid != before.pid
            && now.connected >= before.connected
        {
            let upgraded = Upgraded {
                from_version: before.version,
                version: now.version,
                pid: now.pid,
                seconds: asked.elapsed().as_secs_f64(),
                went_back: now.went_back,
            };
            return serde_json::to_string(&upgraded)
                .map_err(|error| ClientError::NotAnAnswer(error.to_string()));
        }
        thread::sleep(LOOK_EVERY);
    }
    Err(ClientError::Timeout(timeout))
}

/// Whether the new program goes on.
pub(super) fn is_done(answer: &str) -> serde_json::Result<bool> {
    serde_json::from_str(answer).map(|upgraded: Upgraded| !upgraded.went_back)
}

/// For people.
pub(super) fn text(answer: &str) -> serde_json::Result<String> {
    let Upgraded { from_version, version, pid, seconds, went_back } = serde_json::from_str(answer)?;
    let milliseconds = seconds * 1e3;
    Ok(if went_back {
        format!(
            "the new program did not serve: {version} goes on as before (PID {pid}, after \
             {milliseconds:.0} ms); the log says more\n"
        )
    } else {
        format!("{from_version} → {version}, PID {pid}, after {milliseconds:.0} ms\n")
    })
}
