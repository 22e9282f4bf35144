// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/target`: how much memory the guest goes without, or how much it keeps, for good or for the time
//! of a lease.

use std::time::{Duration, Instant};

use log::{Level, info, log};
use serde::{Deserialize, Serialize};

use super::context::{Answer, Context, unavailable};
use crate::control::http::Response;
use crate::control::views::left_seconds;
use crate::device::{Balloon, Lease, MAX_LEASE, TargetError, TargetRefused};
use crate::state::{State, Told};

/// An example of the body, for errors.
const EXAMPLE: &str = r#"{"bytes": 536870912} or {"leave_bytes": 1610612736}"#;

/// A target to set: exactly one of the two sizes.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct TargetRequest {
    /// Bytes that the balloon takes from the guest.
    bytes: Option<u64>,
    /// Bytes that the balloon leaves to the guest.
    leave_bytes: Option<u64>,
    /// Lets the guest keep less than the reserve; `false` by default.
    #[serde(default)]
    force: bool,
    /// Seconds, from 1 to 86400, after which the base target holds again, unless the lease is renewed by
    /// another such request; without, this target becomes the base.
    lease_seconds: Option<u32>,
}

impl TargetRequest {
    /// Bytes that the balloon is to take.
    ///
    /// # Errors
    /// The answer that says what is missing, or that it leaves the guest too little.
    fn balloon_bytes(&self, balloon: &Balloon) -> Result<u64, Response> {
        let memory = balloon.memory_bytes();
        let bytes = match (self.bytes, self.leave_bytes, memory) {
            (Some(bytes), None, _) => bytes,
            (None, Some(leave), Some(memory)) => memory.checked_sub(leave).ok_or_else(|| {
                let text = format!("cannot leave {leave} bytes, the guest has {memory}");
                Response::error(409, text)
            })?,
            (None, Some(_), None) => {
                let text = "cannot leave that much: the guest's memory is not known before a VMM \
                            connects. Say what to take (bytes), or wait";
                return Err(Response::error(409, text));
            }
            _ => {
                let text = format!("expected a body such as {EXAMPLE}, with one of the two sizes");
                return Err(Response::error(400, text));
            }
        };
        if let Some(memory) = memory.filter(|_| !self.force) {
            TargetRefused::check(bytes, memory)
                .map_err(|refused| Response::error(409, refused.to_string()))?;
        }
        Ok(bytes)
    }
}

/// The target in both readings.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TargetView {
    /// Bytes that the balloon takes from the guest.
    pub bytes: u64,
    /// Bytes that the balloon leaves to the guest; `null` while the guest's memory is not known.
    pub leave_bytes: Option<u64>,
    /// Bytes of memory that the guest has without a balloon; `null` while that is not known.
    pub memory_bytes: Option<u64>,
    /// Whether no driver runs: the target is kept, and told to one that does.
    pub pending: bool,
    /// Bytes of the base target, which holds when no lease does.
    pub base_bytes: u64,
    /// Seconds until the lease is over; `null` without one.
    pub lease_left_seconds: Option<f64>,
}

impl TargetView {
    /// The target now, and what became of it.
    fn of(balloon: &Balloon, told: Told) -> Self {
        let (target, memory_bytes) = (balloon.target(), balloon.memory_bytes());
        let bytes = target.bytes();
        let leave_bytes = memory_bytes.map(|memory| memory.saturating_sub(bytes));
        Self {
            bytes,
            leave_bytes,
            memory_bytes,
            pending: told == Told::WhenADriverRuns,
            base_bytes: target.base_bytes,
            lease_left_seconds: left_seconds(&target),
        }
    }
}

/// `GET /v1/target`
pub(super) fn show(context: &Context<'_>) -> Answer {
    context.no_body()?;
    Ok(Response::json(&TargetView::of(&context.state.balloon, told(context.state))).into())
}

/// Whether the driver knows of the target.
fn told(state: &State) -> Told {
    if state.driver().runs() { Told::Now } else { Told::WhenADriverRuns }
}

/// `PUT /v1/target`
pub(super) fn set(context: &Context<'_>) -> Answer {
    let state = context.state;
    let target: TargetRequest = context.body(EXAMPLE)?;
    let wanted = target.balloon_bytes(&state.balloon)?;
    let lease = target.lease_seconds.map(lease_length).transpose()?;
    let is_renewed = lease.is_some() && state.balloon.target().lease.is_some();
    let view = change(state, |balloon| match lease {
        Some(length) => {
            balloon.set_lease(Some(Lease::new(wanted, target.force, Instant::now() + length)?));
            Ok(())
        }
        None => balloon.set_target(wanted, target.force),
    })?;
    let forced = if target.force { ", forced" } else { "" };
    let pending = if view.pending { ", no driver runs" } else { "" };
    let kind = lease.map_or(String::new(), |length| format!(" for {} s", length.as_secs()));
    // Those that renew leases do so every few seconds.
    let level = if is_renewed { Level::Debug } else { Level::Info };
    log!(level, "target {wanted} bytes{kind}{forced}{pending}, by {}", context.peer);
    Ok(Response::json(&view).into())
}

/// `DELETE /v1/target`
pub(super) fn end_lease(context: &Context<'_>) -> Answer {
    context.no_body()?;
    let state = context.state;
    if state.balloon.target().lease.is_none() {
        return Ok(Response::json(&TargetView::of(&state.balloon, told(state))).into());
    }
    let view = change(state, |balloon| {
        balloon.set_lease(None);
        Ok(())
    })?;
    info!("lease ended, target {} bytes, by {}", view.bytes, context.peer);
    Ok(Response::json(&view).into())
}

fn lease_length(seconds: u32) -> Result<Duration, Response> {
    let (length, most) = (Duration::from_secs(seconds.into()), MAX_LEASE.as_secs());
    if length.is_zero() || length > MAX_LEASE {
        let text = format!("a lease lasts from 1 to {most} seconds, got {seconds}");
        return Err(Response::error(400, text));
    }
    Ok(length)
}

/// Changes the target and tells the driver. Where that fails, the target stays as it was.
fn change(
    state: &State,
    change: impl FnOnce(&Balloon) -> Result<(), TargetError>,
) -> Result<TargetView, Response> {
    let before = state.balloon.target();
    change(&state.balloon).map_err(|error| Response::error(400, error.to_string()))?;
    let now = state.balloon.target();
    let is_renewal = before.lease.is_some() && now.lease.is_some();
    if is_renewal && (now.bytes(), now.is_forced()) == (before.bytes(), before.is_forced()) {
        // No guest is woken for that, and a driver that has deflated does not inflate again.
        return Ok(TargetView::of(&state.balloon, told(state)));
    }
    let told = state.announce_change().map_err(|error| {
        // It was one before.
        let _ = state.balloon.set_target(before.base_bytes, before.base_forced);
        state.balloon.set_lease(before.lease);
        unavailable("cannot announce the new target to the guest", &error)
    })?;
    Ok(TargetView::of(&state.balloon, told))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use virtio_queue::{Queue, QueueT};

    use super::*;
    use crate::control::api::{Access, answer};
    use crate::control::http::Request;
    use crate::control::peer::Peer;
    use crate::control::reply::Reply;
    use crate::device::DeviceOptions;
    use crate::discard::MemoryOptions;
    use crate::state::Frontend;

    /// A frontend whose channel is full.
    struct Full;

    impl Frontend for Full {
        fn config_changed(&self) -> io::Result<()> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn poll_statistics(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A guest that is told nothing, over a channel that is full.
    fn put(state: &Arc<State>, body: &[u8]) -> u16 {
        let request = Request {
            method: "PUT",
            path: "/v1/target",
            query: None,
            openmetrics: false,
            body,
            keep_alive: true,
        };
        match answer(&request, Access::Everything, state, Peer::Unknown) {
            Reply::Ready(response) => response.status,
            reply => panic!("{reply:?}"),
        }
    }

    fn full() -> Arc<State> {
        let state = Arc::new(State::new(DeviceOptions::default(), MemoryOptions::default()));
        state.set_frontend(Some(Arc::new(Full)));
        state.balloon.set_acked_features(0);
        state.rings.note(0, Some(&Queue::new(2).unwrap()));
        state
    }

    /// Found by fuzzing: the target was as before, and forced from then on.
    #[test]
    fn target_that_cannot_be_told_changes_nothing() {
        let state = full();
        let before = state.balloon.target();
        assert_eq!(put(&state, br#"{"bytes": 8192, "force": true}"#), 503);
        assert_eq!(put(&state, br#"{"bytes": 8192, "lease_seconds": 60}"#), 503);
        assert_eq!(state.balloon.target(), before);
    }

    #[test]
    fn renewal_of_a_lease_wakes_no_guest() {
        let state = full();
        let until = Instant::now() + Duration::from_secs(5);
        state.balloon.set_lease(Some(Lease::new(8192, false, until).unwrap()));
        assert_eq!(put(&state, br#"{"bytes": 8192, "lease_seconds": 60}"#), 200);
        assert!(state.balloon.target().lease.unwrap().until > until);
        assert_eq!(put(&state, br#"{"bytes": 4096, "lease_seconds": 60}"#), 503);
        assert_eq!(state.balloon.target_bytes(), 8192);
    }
}
