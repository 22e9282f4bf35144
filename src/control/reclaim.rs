// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `POST /v1/reclaim` and `POST /v1/park`: squeezes what the guest has available into the balloon and
//! lets go, for as long as the client waits.
//!
//! [`crate::device::reclaim`] decides. This file carries the orders out, and lets go when it is
//! dropped: the client has hung up or died, made room for another, or has its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};
use serde::{Deserialize, Serialize};

use super::http::Response;
use super::peer::Peer;
use super::reply::Work;
use crate::device::Stop;
use crate::device::reclaim::{End, Orders, Reclaim, Seen};
use crate::discard::{Cause, Look, MOST_LOOK, Ticket};
use crate::state::State;

/// An example of the body, for errors.
pub(super) const EXAMPLE: &str = r#"{"keep_bytes": 268435456, "timeout_seconds": 60}, or none"#;

/// How long a reclaim may squeeze, in seconds, unless the client says otherwise.
pub(crate) const DEFAULT_TIMEOUT: u32 = 60;
/// The longest time that a client may say, in seconds.
const MOST_TIMEOUT: u32 = 3600;

/// How often the guest is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a discarding call in progress may take when the guest is parked.
const CALL_WITHIN: Duration = Duration::from_secs(3);

/// How to reclaim.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct ReclaimRequest {
    /// Bytes of the available memory that the guest keeps; by default the reserve of a target.
    keep_bytes: Option<u64>,
    /// Seconds after which it lets go at the latest, from 1 to 3600; by default 60.
    timeout_seconds: Option<u32>,
}

/// What a reclaim came to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReclaimView {
    /// Why it let go.
    #[cfg_attr(test, schemars(extend("examples" = <End as strum::VariantNames>::VARIANTS)))]
    pub ended_by: String,
    /// The sign of pressure; `null` where `ended_by` is something else.
    pub pressure: Option<String>,
    /// Bytes of the available memory that the guest was to keep; `null` if it was not asked for and
    /// the guest sent no statistics.
    pub keep_bytes: Option<u64>,
    /// Bytes that the guest said were available; `null` if it sent no statistics.
    pub available_bytes: Option<u64>,
    /// Bytes that were wanted in the balloon; 0 if it was not squeezed.
    pub target_bytes: u64,
    /// Bytes that the guest gave, beyond what was in the balloon before.
    pub squeezed_bytes: u64,
    /// Bytes that were discarded meanwhile, those of the guest's reports among them.
    pub discarded_bytes: u64,
    /// Bytes of the guest's memory files that were there before; `null` if the kernel did not say.
    pub resident_before_bytes: Option<u64>,
    /// Bytes of the guest's memory files that are there now; `null` if the kernel did not say.
    pub resident_after_bytes: Option<u64>,
    /// Seconds from the first request for statistics to the end.
    pub seconds: f64,
    /// Seconds of those from letting go on; `null` if that has not ended.
    pub let_go_seconds: Option<f64>,
    /// Whether the guest has confirmed that the balloon is back at its target.
    pub let_go_confirmed: bool,
    /// Whether discarding is paused until `unpark`.
    pub parked: bool,
}

/// How far it has come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Waits for a look at the resident memory.
    Before(Option<Look>),
    Reclaims,
    /// Waits for the discarding calls that began before the guest was parked.
    Parks(Ticket),
    /// Waits for another look.
    After(Option<Look>),
}

/// A reclaim in progress. It has the device's squeeze.
pub(super) struct Running {
    state: Arc<State>,
    peer: Peer,
    parks: bool,
    stage: Stage,
    /// Since when that stage lasts.
    since: Instant,
    due: Instant,
    reclaim: Reclaim,
    timeout: Duration,
    discarded_before: u64,
    resident_before: Option<u64>,
    /// The client has its answer, and a parked guest stays parked.
    is_answered: bool,
}

impl Running {
    /// Begins.
    ///
    /// # Errors
    /// The answer that says why not.
    pub(super) fn start(
        state: &Arc<State>,
        request: ReclaimRequest,
        parks: bool,
        peer: Peer,
    ) -> Result<Self, Response> {
        let seconds = request.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT);
        if !(1..=MOST_TIMEOUT).contains(&seconds) {
            let text = format!("expected timeout_seconds from 1 to {MOST_TIMEOUT}, got {seconds}");
            return Err(Response::error(400, text));
        }
        let conflict = |text: String| Err(Response::error(409, text));
        if state.inhibit.reason().is_some() {
            let paused = super::views::PausedView::of(state).paused_by.join(", ");
            return conflict(format!(
                "discarding is paused ({paused}), so that a reclaim returns nothing: resume first"
            ));
        }
        if !state.balloon.claim_squeeze() {
            return conflict("another reclaim is in progress: wait for its end".to_owned());
        }
        let now = Instant::now();
        let timeout = Duration::from_secs(seconds.into());
        Ok(Self {
            state: Arc::clone(state),
            peer,
            parks,
            stage: Stage::Before(state.survey.ask(now)),
            since: now,
            due: now + LOOK_EVERY,
            reclaim: Reclaim::new(now, request.keep_bytes, timeout),
            timeout,
            discarded_before: state.counters.snapshot().bytes_discarded,
            resident_before: None,
            is_answered: false,
        })
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        (self.stage, self.since) = (stage, now);
    }

    /// The resident memory that a look has seen, or that it is unknown; `None` if it is still to see.
    fn looked(&self, look: Option<Look>, now: Instant) -> Option<Option<u64>> {
        let survey = &self.state.survey;
        match look {
            Some(look) if survey.is_taken(look) => Some(survey.resident_bytes()),
            Some(_) if now < self.since + MOST_LOOK => None,
            _ => Some(None),
        }
    }

    /// Looks at the guest and does what that calls for; an answer only if the guest cannot be told.
    fn reclaim(&mut self, now: Instant) -> Option<Response> {
        let state = &self.state;
        let stopped = state.balloon.squeeze_stopped();
        let obstacle = match () {
            () if stopped == Some(Stop::Shutdown) => Some(End::Stopping),
            () if stopped == Some(Stop::Interrupted) => Some(End::Interrupted),
            () if !state.driver().runs() => Some(End::DriverGone),
            () if state.inhibit.reason().is_some() => Some(End::Paused),
            () => None,
        };
        let squeeze_bytes = state.balloon.squeeze_bytes();
        let orders: Orders = self.reclaim.step(&Seen {
            now,
            sample: state.statistics(),
            actual_bytes: state.actual_bytes(),
            base_bytes: state.balloon.told_target_bytes(),
            memory_bytes: state.balloon.memory_bytes(),
            squeeze_bytes,
            obstacle,
        });
        if orders.ask
            && let Some(frontend) = state.frontend()
            && let Err(error) = frontend.poll_statistics()
        {
            // It is asked again, and silent otherwise.
            warn!("cannot ask for statistics: {error}");
        }
        if orders.squeeze_bytes != squeeze_bytes {
            let set = state.balloon.squeeze(orders.squeeze_bytes);
            if let Err(error) = set {
                return Some(Response::error(500, error.to_string()));
            }
            match (state.announce_change(), orders.squeeze_bytes) {
                (Ok(_), Some(bytes)) => {
                    let keep = self.reclaim.keep_bytes.unwrap_or_default();
                    info!(
                        "reclaim: squeezes to {bytes} bytes, the guest keeps {keep} available, by {}",
                        self.peer
                    );
                }
                (Ok(_), None) => {}
                (Err(error), Some(_)) => {
                    let text = format!("cannot announce the target to the guest: {error}");
                    return Some(Response::error(503, text));
                }
                (Err(error), None) => {
                    warn!("reclaim: the guest is told later that it is let go: {error}");
                    state.tell_driver_later();
                }
            }
        }
        // A daemon that ends parks nothing, and one that was interrupted neither.
        self.parks &= !matches!(self.reclaim.end, Some(End::Stopping | End::Interrupted));
        if orders.over {
            let stage = match self.parks {
                true => {
                    let forbidden = state.inhibit.forbid(Cause::Parked);
                    // A daemon that goes on with the VM discards nothing either.
                    state.keep();
                    Stage::Parks(forbidden)
                }
                false => Stage::After(state.survey.ask(now)),
            };
            self.enter(stage, now);
        }
        None
    }

    fn view(&self, now: Instant, resident_after_bytes: Option<u64>) -> ReclaimView {
        let discarded = self.state.counters.snapshot().bytes_discarded;
        let Reclaim { keep_bytes, available_bytes, target_bytes, .. } = self.reclaim;
        let end = self.reclaim.end;
        ReclaimView {
            ended_by: end.map_or("", End::name).to_owned(),
            pressure: end.and_then(End::pressure).map(str::to_owned),
            keep_bytes,
            available_bytes,
            target_bytes,
            squeezed_bytes: self.reclaim.squeezed_bytes(),
            discarded_bytes: discarded.saturating_sub(self.discarded_before),
            resident_before_bytes: self.resident_before,
            resident_after_bytes,
            seconds: self.reclaim.took(now).as_secs_f64(),
            let_go_seconds: self.reclaim.letting_go_took().map(|took| took.as_secs_f64()),
            let_go_confirmed: self.reclaim.is_confirmed,
            parked: self.parks,
        }
    }
}

impl Work for Running {
    fn advance(&mut self, now: Instant, _state: &State) -> Option<Response> {
        self.due = now + LOOK_EVERY;
        match self.stage {
            Stage::Before(look) => {
                self.resident_before = self.looked(look, now)?;
                // Its time begins with it.
                self.reclaim = Reclaim::new(now, self.reclaim.keep_bytes, self.timeout);
                self.enter(Stage::Reclaims, now);
                self.reclaim(now)
            }
            Stage::Reclaims => self.reclaim(now),
            Stage::Parks(ticket) => {
                if self.state.inhibit.is_over(ticket) {
                    self.enter(Stage::After(self.state.survey.ask(now)), now);
                    return None;
                }
                (now >= self.since + CALL_WITHIN).then(|| {
                    let text = "not parked: a discarding system call that began before has not \
                                ended, the memory file is busy. Try again";
                    Response::error(504, text)
                })
            }
            Stage::After(look) => {
                let view = self.view(now, self.looked(look, now)?);
                let ReclaimView { ended_by, squeezed_bytes, discarded_bytes, seconds, .. } = &view;
                info!(
                    "reclaim: ended by {ended_by}{}{}, {squeezed_bytes} bytes squeezed, \
                     {discarded_bytes} discarded, {seconds:.2} s, by {}",
                    view.pressure.as_ref().map_or(String::new(), |sign| format!(" ({sign})")),
                    if view.parked { ", parked" } else { "" },
                    self.peer,
                );
                self.is_answered = true;
                Some(Response::json(&view))
            }
        }
    }

    fn due(&self) -> Instant {
        self.due
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let state = &self.state;
        let squeezed = state.balloon.squeeze_bytes().is_some();
        state.balloon.release_squeeze();
        if squeezed && state.announce_change().is_err() {
            state.tell_driver_later();
        }
        if self.is_answered {
            return;
        }
        if matches!(self.stage, Stage::Parks(_) | Stage::After(_)) && self.parks {
            state.inhibit.lift(Cause::Parked);
            state.keep();
        }
        info!(
            "reclaim: its client has gone or was refused; the balloon returns to {} bytes, by {}",
            state.balloon.told_target_bytes(),
            self.peer,
        );
    }
}
