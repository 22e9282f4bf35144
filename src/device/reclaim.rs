// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reclaim on demand does next.
//!
//! A reclaim asks the guest how much memory it has available, squeezes that much less a reserve into
//! the balloon, lets go, and waits until the guest confirms it. While it squeezes it asks again and
//! again, and lets go at the first sign of [`Pressure`].
//!
//! Pure: no clock, no device, no socket. [`Reclaim::step`] is fed with what was [`Seen`] and returns
//! [`Orders`], which say what holds from now on. Once a reclaim lets go it never squeezes again.

use std::time::{Duration, Instant};

use strum::IntoStaticStr;

use super::config_space::{BALLOON_PAGE_SIZE, MAX_BALLOON_BYTES};
use super::statistics::{Sample, Statistics};
use super::target::{largest_target, reserve_bytes};

/// How often the guest is asked for statistics. Each time wakes it.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long an answer may take before the guest is asked again: the request may be lost.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a guest may be silent while it is squeezed. One that starves may be unable to answer.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// How long the balloon may stay as large as it is before the guest counts as exhausted. Linux waits
/// 200 ms after an allocation that failed.
const EXHAUSTED_AFTER: Duration = Duration::from_secs(3);
/// How long the guest may take to confirm that the balloon is let go.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);
/// Less than this is not worth a squeeze, in bytes.
const LEAST_BYTES: u64 = 1 << 20;
/// Swapping that is no guest pressure, in bytes, in or out: since a reclaim began, or from one sample of a
/// policy to the next.
pub const SPARED_SWAP_BYTES: u64 = 1 << 20;
/// Major faults that are no guest pressure, over the same time.
pub const SPARED_MAJOR_FAULTS: u64 = 256;

/// A sign in the statistics that the guest needs its memory. The balloon's own allocations stall and
/// scan, too, so that `allocation_stalls` and the scan counters are no sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Pressure {
    /// The OOM killer ran.
    OomKill,
    /// The guest swapped more than a MiB out.
    SwapOut,
    /// The guest swapped more than a MiB in.
    SwapIn,
    /// More than 256 page faults waited for a disk.
    MajorFaults,
    /// Less than half of the reserve is available.
    Available,
    /// The guest took memory out of the balloon.
    Deflated,
}

/// Why a reclaim let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantNames))]
#[strum(serialize_all = "snake_case")]
pub(crate) enum End {
    /// All that was wanted was in the balloon.
    Reached,
    /// There was nothing to take beyond the reserve.
    NothingToTake,
    /// The guest could give no more, although it said that more was available.
    Exhausted,
    /// See there.
    Pressure(Pressure),
    /// Its time was up.
    Deadline,
    /// The guest sent no statistics.
    Silent,
    /// The daemon is shutting down.
    Stopping,
    /// An operator has ended it.
    Interrupted,
    /// Discarding is paused, so that a squeeze returns nothing.
    Paused,
    /// The driver was unloaded or reset, or the VMM disconnected.
    DriverGone,
}

impl End {
    /// The name in JSON: the variant's in snake case.
    pub(crate) fn name(self) -> &'static str {
        self.into()
    }

    /// The sign of pressure, by its name in JSON.
    pub(crate) fn pressure(self) -> Option<&'static str> {
        match self {
            Self::Pressure(pressure) => Some(pressure.into()),
            _ => None,
        }
    }
}

/// What is known at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// The moment.
    pub now: Instant,
    /// The last statistics of the guest.
    pub sample: Option<Sample>,
    /// Bytes that the driver says are in the balloon.
    pub actual_bytes: Option<u64>,
    /// Bytes that the operator wants in it.
    pub base_bytes: u64,
    /// Bytes of memory that the guest has.
    pub memory_bytes: Option<u64>,
    /// What the device squeezes to now.
    pub squeeze_bytes: Option<u64>,
    /// Why it cannot go on: [`End::Stopping`], [`End::Paused`] or [`End::DriverGone`].
    pub obstacle: Option<End>,
}

/// What holds from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Bytes to squeeze to; `None` to let go.
    pub squeeze_bytes: Option<u64>,
    /// Whether to ask the guest for statistics.
    pub ask: bool,
    /// Whether the reclaim is over.
    pub over: bool,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Waits for statistics that are newer than the reclaim.
    Asking,
    /// Waits until the balloon is large enough. It grew last at that time.
    Squeezing { grew: Instant },
    /// Waits until the guest has deflated it.
    LettingGo { since: Instant },
    /// Nothing more happens.
    Over,
}

/// One reclaim. Its fields are what to report of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reclaim {
    /// Available bytes that the guest keeps; by default the reserve of a target, once it is known.
    pub keep_bytes: Option<u64>,
    began: Instant,
    deadline: Instant,
    phase: Phase,
    asked: Option<Instant>,
    answered: Option<Instant>,
    /// Bytes that the guest said were available at first.
    pub available_bytes: Option<u64>,
    /// Bytes that were wanted in the balloon; 0 if it was not squeezed.
    pub target_bytes: u64,
    /// The statistics and the balloon before the squeeze, and the largest balloon.
    at_first: Statistics,
    at_first_bytes: u64,
    most_bytes: u64,
    /// Why it let go; `None` before it does.
    pub end: Option<End>,
    let_go: Option<Instant>,
    ended: Option<Instant>,
    /// Whether the guest has confirmed that the balloon is let go.
    pub is_confirmed: bool,
}

impl Reclaim {
    /// A reclaim that begins `now`, leaves `keep_bytes` of what is available or the reserve of a
    /// target, and lets go `timeout` later at the latest.
    pub(crate) fn new(now: Instant, keep_bytes: Option<u64>, timeout: Duration) -> Self {
        Self {
            keep_bytes,
            began: now,
            deadline: now + timeout,
            phase: Phase::Asking,
            asked: None,
            answered: None,
            available_bytes: None,
            target_bytes: 0,
            at_first: Statistics::default(),
            at_first_bytes: 0,
            most_bytes: 0,
            end: None,
            let_go: None,
            ended: None,
            is_confirmed: false,
        }
    }

    /// Bytes that the guest gave beyond what was in the balloon before.
    pub(crate) fn squeezed_bytes(&self) -> u64 {
        self.most_bytes.saturating_sub(self.at_first_bytes)
    }

    /// Time from the beginning to the end, as far as it has come by `now`.
    pub(crate) fn took(&self, now: Instant) -> Duration {
        self.ended.unwrap_or(now).saturating_duration_since(self.began)
    }

    /// Time from letting go to the guest's confirmation.
    pub(crate) fn letting_go_took(&self) -> Option<Duration> {
        Some(self.ended?.saturating_duration_since(self.let_go?))
    }

    /// Goes on with what is known now.
    pub(crate) fn step(&mut self, seen: &Seen) -> Orders {
        let fresh = self.fresh(seen);
        if let Some(end) = self.ends(seen, fresh) {
            self.end = Some(end);
            self.let_go = Some(seen.now);
            self.phase = Phase::LettingGo { since: seen.now };
        }
        if let Phase::LettingGo { since } = self.phase {
            let is_gone = self.end == Some(End::DriverGone);
            // A driver that has not said how much is in its balloon has put nothing into it.
            self.is_confirmed = !is_gone && seen.actual_bytes.unwrap_or(0) <= seen.base_bytes;
            let waited = seen.now.saturating_duration_since(since);
            if self.is_confirmed || is_gone || waited >= CONFIRMED_WITHIN {
                self.phase = Phase::Over;
                self.ended = Some(seen.now);
            }
        }
        match self.phase {
            Phase::Asking => Orders { ask: self.asks(seen.now), ..Orders::default() },
            Phase::Squeezing { .. } => Orders {
                squeeze_bytes: Some(self.target_bytes),
                ask: self.asks(seen.now),
                over: false,
            },
            Phase::LettingGo { .. } => Orders::default(),
            Phase::Over => Orders { over: true, ..Orders::default() },
        }
    }

    /// Statistics that came after the reclaim began and after those before.
    fn fresh(&mut self, seen: &Seen) -> Option<Sample> {
        let sample = seen.sample.filter(|sample| sample.at >= self.began)?;
        if self.answered.is_some_and(|before| sample.at <= before) {
            return None;
        }
        self.answered = Some(sample.at);
        Some(sample)
    }

    /// Why it lets go now, if it does.
    fn ends(&mut self, seen: &Seen, fresh: Option<Sample>) -> Option<End> {
        if matches!(self.phase, Phase::LettingGo { .. } | Phase::Over) {
            return None;
        }
        if let Some(obstacle) = seen.obstacle {
            return Some(obstacle);
        }
        let end = match self.phase {
            Phase::Squeezing { grew } => self.squeezes(seen, fresh, grew),
            _ => fresh.and_then(|sample| self.begin(seen, &sample.values)),
        };
        if end.is_some() {
            return end;
        }
        if seen.now >= self.deadline {
            // A guest that has never answered is not slow, but silent.
            return Some(self.answered.map_or(End::Silent, |_| End::Deadline));
        }
        let heard = self.answered.unwrap_or(self.began);
        (seen.now.saturating_duration_since(heard) >= SILENT_AFTER).then_some(End::Silent)
    }

    /// Why a squeeze ends now, if it does.
    fn squeezes(&mut self, seen: &Seen, fresh: Option<Sample>, grew: Instant) -> Option<End> {
        // The device has forgotten it: another driver begins.
        if seen.squeeze_bytes != Some(self.target_bytes) {
            return Some(End::DriverGone);
        }
        let pressure = fresh.and_then(|sample| self.pressure(&sample.values));
        if let Some(pressure) = pressure {
            return Some(End::Pressure(pressure));
        }
        let now_bytes = seen.actual_bytes.unwrap_or(self.at_first_bytes);
        if now_bytes < self.most_bytes {
            return Some(End::Pressure(Pressure::Deflated));
        }
        if now_bytes > self.most_bytes {
            self.most_bytes = now_bytes;
            self.phase = Phase::Squeezing { grew: seen.now };
        } else if seen.now.saturating_duration_since(grew) >= EXHAUSTED_AFTER
            && self.hears(seen.now)
        {
            return Some(End::Exhausted);
        }
        (now_bytes >= self.target_bytes).then_some(End::Reached)
    }

    /// Whether the guest answers. One that is stopped gives nothing either, and is not exhausted.
    fn hears(&self, now: Instant) -> bool {
        self.answered.is_some_and(|at| now.saturating_duration_since(at) < ASK_AGAIN)
    }

    /// Begins to squeeze, if there is something to take.
    fn begin(&mut self, seen: &Seen, values: &Statistics) -> Option<End> {
        // Without the estimate, what is free is available.
        let Some(available) = values.available_bytes.or(values.free_bytes) else {
            return Some(End::Silent);
        };
        let now_bytes = seen.actual_bytes.unwrap_or(seen.base_bytes);
        let memory = seen.memory_bytes.unwrap_or(0);
        let keep = *self.keep_bytes.get_or_insert_with(|| reserve_bytes(memory));
        let most = largest_target(memory).min(MAX_BALLOON_BYTES);
        let wanted = now_bytes.saturating_add(available.saturating_sub(keep)).min(most);
        let target = wanted - wanted % BALLOON_PAGE_SIZE;
        self.available_bytes = Some(available);
        (self.at_first_bytes, self.most_bytes) = (now_bytes, now_bytes);
        if target < now_bytes.max(seen.base_bytes).saturating_add(LEAST_BYTES) {
            return Some(End::NothingToTake);
        }
        (self.target_bytes, self.at_first) = (target, *values);
        self.phase = Phase::Squeezing { grew: seen.now };
        None
    }

    /// The first sign of pressure, if there is one.
    fn pressure(&self, now: &Statistics) -> Option<Pressure> {
        let more = |field: fn(&Statistics) -> Option<u64>, spared| {
            let grown = field(now).zip(field(&self.at_first));
            grown.is_some_and(|(now, at_first)| now.saturating_sub(at_first) > spared)
        };
        let available = now.available_bytes.or(now.free_bytes);
        let keep = self.keep_bytes.unwrap_or(0);
        Some(match () {
            () if more(|values| values.oom_kills, 0) => Pressure::OomKill,
            () if more(|values| values.swapped_out_bytes, SPARED_SWAP_BYTES) => Pressure::SwapOut,
            () if more(|values| values.swapped_in_bytes, SPARED_SWAP_BYTES) => Pressure::SwapIn,
            () if more(|values| values.major_faults, SPARED_MAJOR_FAULTS) => Pressure::MajorFaults,
            () if available.is_some_and(|bytes| bytes < keep / 2) => Pressure::Available,
            () => return None,
        })
    }

    /// Whether to ask for statistics now.
    fn asks(&mut self, now: Instant) -> bool {
        let due = self.asked.is_none_or(|asked| {
            let is_answered = self.answered.is_some_and(|answered| answered >= asked);
            let wait = if is_answered { ASK_EVERY } else { ASK_AGAIN };
            now.saturating_duration_since(asked) >= wait
        });
        if due {
            self.asked = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests;
