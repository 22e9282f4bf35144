// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known of a guest from the steps before: what it has used, and when it was under pressure.

use std::time::Duration;

use vhost_device_balloon::operator::{SPARED_MAJOR_FAULTS, SPARED_SWAP_BYTES, reserve_bytes};

use crate::decision::Why;
use crate::rules::Held;
use crate::seen::{GuestSeen, Sample};

/// How long the most that a guest has used is remembered, roughly: a third of what it uses less is
/// forgotten in that time.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How many samples must have come before anything is taken. Two are needed to see pressure.
const LEAST_SAMPLES: u32 = 3;
/// How long nothing is taken after the first sign of pressure,
const FIRST_RECOVERY: Duration = Duration::from_secs(300);
/// and at most.
const LONGEST_RECOVERY: Duration = Duration::from_secs(3600);
/// After so long without pressure the first time counts again.
const FORGIVEN: Duration = Duration::from_secs(6 * 3600);
/// How long nothing is taken from a guest that was given back to, unless it is urgent.
const SETTLES: Duration = Duration::from_secs(900);
/// How long a balloon may take to follow before the host no longer counts on it.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(60);
/// A balloon that is smaller by this has been deflated; what lacks less has followed.
const SLACK: u64 = 1 << 20;

/// A size at which the guest was under pressure.
#[derive(Clone, Copy, Debug)]
struct Scar {
    /// Bytes that it was left.
    leave: u64,
    /// Bytes that it used at most.
    used: u64,
}

/// What is remembered of a guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// When its last sample was made, and what it said.
    last: Option<(Duration, Sample)>,
    samples: u32,
    /// The most that it has used lately.
    peak: u64,
    scar: Option<Scar>,
    /// When it was under pressure last, and for how long nothing is taken then.
    pressure: Option<(Duration, Duration)>,
    /// Its balloon, and since when it has been short of the target.
    actual: Option<u64>,
    lags_since: Option<Duration>,
    /// When the policy gave back to it last.
    pub(crate) given_at: Option<Duration>,
    /// The policy has sent a lease and not ended it.
    pub(crate) has_lease: bool,
}

/// A guest of which enough is known to decide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes without any lease.
    pub whole: u64,
    /// Bytes that it keeps in any case.
    pub floor: u64,
    /// Bytes that it gets at most.
    pub ceiling: u64,
    /// Bytes that are left to it now.
    pub leave: u64,
    /// Bytes of those that the host holds.
    pub resident: u64,
    /// The most that it has used lately.
    pub peak: u64,
    /// The most that is taken in one step, in bytes.
    pub step: u64,
    /// Bytes that its balloon is about to return.
    pub coming: u64,
    /// Why nothing can be taken now.
    pub spared: Option<Why>,
    /// A sign of pressure in this sample.
    pub pressure: Option<Why>,
}

impl Known {
    /// Takes note of what is seen of the guest.
    ///
    /// # Errors
    /// Why nothing can be decided.
    pub(crate) fn look(
        &mut self,
        seen: &GuestSeen,
        rules: &Held,
        now: Duration,
        fresh: Duration,
    ) -> Result<View, Why> {
        let actual_before = std::mem::replace(&mut self.actual, seen.actual_bytes);
        let memory = seen.memory_bytes.filter(|memory| *memory > 0).ok_or(Why::NoGuest)?;
        if rules.needs_deflate_on_oom && !seen.deflates_on_oom {
            return Err(Why::NoDeflateOnOom);
        }
        let sample = seen.sample.filter(|sample| sample.age <= fresh).ok_or(Why::NoSample)?;
        let used = sample.used_bytes().filter(|used| *used <= memory).ok_or(Why::NoSample)?;
        let at = now.saturating_sub(sample.age);
        let before = self.last.filter(|(last, _)| *last <= at);
        let is_new = before.is_none_or(|(last, _)| last < at);

        let reserve = rules.reserve(memory).min(memory / 2);
        let whole = memory.saturating_sub(seen.base_bytes);
        let leave = memory.saturating_sub(seen.target_bytes);
        let mut pressure = None;
        if is_new {
            self.remember_peak(used, before.map_or(Duration::MAX, |(last, _)| at - last));
            self.samples = self.samples.saturating_add(1);
            self.last = Some((at, sample));
            let is_squeezed = leave < whole;
            pressure = before
                .and_then(|(_, before)| sign(&before, &sample))
                .or_else(|| (sample.available_bytes < reserve / 2).then_some(Why::Available))
                .or_else(|| was_deflated(actual_before, seen).then_some(Why::Deflated))
                .filter(|_| is_squeezed);
        }
        self.peak = self.peak.max(used);
        if pressure.is_some() {
            self.feel_pressure(now, leave);
        }
        if self.scar.is_some_and(|scar| self.peak < scar.used / 4 * 3) {
            self.scar = None;
        }
        // A little more than where it hurt.
        let scar = self.scar.map_or(0, |scar| scar.leave.saturating_add(memory / 16));
        let floor = (self.peak.saturating_add(reserve)).max(rules.min).max(scar);
        let floor = floor.max(reserve_bytes(memory)).min(whole);
        let lag = seen.actual_bytes.map_or(0, |actual| seen.target_bytes.saturating_sub(actual));
        let lags = lag > SLACK;
        self.lags_since = self.lags_since.or(Some(now)).filter(|_| lags);
        let counts =
            self.lags_since.is_some_and(|since| now.saturating_sub(since) <= FOLLOWS_WITHIN);
        let spared = if self.recovers(now) {
            Some(Why::Recovers)
        } else if self.samples < LEAST_SAMPLES || !is_new {
            Some(Why::Unknown)
        } else if lags {
            Some(Why::Inflating)
        } else {
            let settles = self.given_at.is_some_and(|at| now.saturating_sub(at) < SETTLES);
            settles.then_some(Why::Settles)
        };
        let resident =
            seen.resident_bytes.unwrap_or(memory - seen.actual_bytes.unwrap_or(0).min(memory));
        Ok(View {
            memory,
            whole,
            floor,
            ceiling: whole.min(rules.max).max(floor),
            leave,
            resident: resident.min(memory),
            peak: self.peak,
            step: memory / 100 * u64::from(rules.step_percent),
            coming: if counts { resident.saturating_sub(leave).min(lag) } else { 0 },
            spared,
            pressure,
        })
    }

    /// The most that was used falls towards what is used.
    fn remember_peak(&mut self, used: u64, passed: Duration) {
        let passed = passed.min(REMEMBERED).as_millis();
        let above = u128::from(self.peak.saturating_sub(used));
        let falls = above * passed / (3 * REMEMBERED.as_millis());
        self.peak = used.max(self.peak - u64::try_from(falls).unwrap_or(u64::MAX).min(self.peak));
    }

    fn feel_pressure(&mut self, now: Duration, leave: u64) {
        let again = self.pressure.filter(|(at, _)| now.saturating_sub(*at) < FORGIVEN);
        let recovery = again.map_or(FIRST_RECOVERY, |(_, last)| (last * 2).min(LONGEST_RECOVERY));
        self.pressure = Some((now, recovery));
        let leave = self.scar.map_or(leave, |scar| scar.leave.max(leave));
        self.scar = Some(Scar { leave, used: self.peak });
    }

    fn recovers(&self, now: Duration) -> bool {
        self.pressure.is_some_and(|(at, recovery)| now.saturating_sub(at) < recovery)
    }
}

/// The sign of pressure in the counts from one sample to the next. A guest that was rebooted begins at 0.
fn sign(before: &Sample, now: &Sample) -> Option<Why> {
    let more = |count: fn(&Sample) -> u64| count(now).saturating_sub(count(before));
    if more(|sample| sample.oom_kills) > 0 {
        return Some(Why::OomKill);
    }
    if more(|sample| sample.swapped_out_bytes) > SPARED_SWAP_BYTES {
        return Some(Why::SwapOut);
    }
    if more(|sample| sample.swapped_in_bytes) > SPARED_SWAP_BYTES {
        return Some(Why::SwapIn);
    }
    (more(|sample| sample.major_faults) > SPARED_MAJOR_FAULTS).then_some(Why::MajorFaults)
}

/// Whether the guest has taken memory out of the balloon that no target gave it.
fn was_deflated(before: Option<u64>, seen: &GuestSeen) -> bool {
    let (Some(before), Some(actual)) = (before, seen.actual_bytes) else { return false };
    let wanted = before.min(seen.target_bytes);
    actual.saturating_add(SLACK) < wanted
}
