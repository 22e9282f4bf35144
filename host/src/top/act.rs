// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the operator has one daemon do.

use std::time::Duration;

use serde_json::{Value, json};
use vhost_device_balloon::operator::{PausedView, ReclaimView, TargetView};

use super::look::in_words;
use super::text::{harmless, size};
use crate::sockets::{AskError, Daemon};

/// How long a reclaim may take: a minute to squeeze, and what the guest needs to confirm its end.
const RECLAIM_WITHIN: Duration = Duration::from_secs(75);

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Sets the target to these bytes in the balloon.
    Take(u64),
    /// Sets the target so that these bytes are left to the guest.
    Leave(u64),
    Pause,
    Resume,
    /// Squeezes what the guest has available, and lets go.
    Reclaim,
    /// Ends a reclaim.
    Interrupt,
}

/// Carries it out; returns what became of it, in words.
///
/// # Errors
/// Why not, in words.
pub(super) async fn carry_out(daemon: Daemon, action: Action) -> Result<String, String> {
    let said = answer(&daemon, action).await;
    said.map_err(|error| harmless(&in_words(&error))).map(|text| harmless(&text))
}

async fn answer(daemon: &Daemon, action: Action) -> Result<String, AskError> {
    match action {
        Action::Take(bytes) => target(daemon, json!({"bytes": bytes})).await,
        Action::Leave(bytes) => target(daemon, json!({"leave_bytes": bytes})).await,
        Action::Pause | Action::Resume => {
            let path = if action == Action::Pause { "/v1/pause" } else { "/v1/resume" };
            let view: PausedView = daemon.json("POST", path, None).await?;
            Ok(match view.paused_by.join(", ") {
                none if none.is_empty() => "discarding goes on".to_owned(),
                causes => format!("discarding is paused by {causes}"),
            })
        }
        Action::Reclaim => {
            let daemon = daemon.clone().within(RECLAIM_WITHIN);
            let view: ReclaimView = daemon.json("POST", "/v1/reclaim", None).await?;
            Ok(reclaimed(&view))
        }
        Action::Interrupt => {
            daemon.ask("DELETE", "/v1/reclaim", None).await?;
            Ok("the reclaim is interrupted".to_owned())
        }
    }
}

async fn target(daemon: &Daemon, body: Value) -> Result<String, AskError> {
    let view: TargetView = daemon.json("PUT", "/v1/target", Some(&body)).await?;
    let pending = if view.pending { ", once a driver runs" } else { "" };
    let leaves =
        view.leave_bytes.map_or(String::new(), |bytes| format!(", leaves {}", size(bytes)));
    Ok(format!("the target takes {}{leaves}{pending}", size(view.bytes)))
}

fn reclaimed(view: &ReclaimView) -> String {
    let why = view.pressure.as_ref().map_or(String::new(), |sign| format!(" ({sign})"));
    let resident = view.resident_before_bytes.zip(view.resident_after_bytes);
    let resident = resident.map_or(String::new(), |(before, after)| {
        format!(", {} resident before, {} after", size(before), size(after))
    });
    let (squeezed, ended, seconds) = (size(view.squeezed_bytes), &view.ended_by, view.seconds);
    format!("the reclaim squeezed {squeezed} in {seconds:.1} s, ended by {ended}{why}{resident}")
}
