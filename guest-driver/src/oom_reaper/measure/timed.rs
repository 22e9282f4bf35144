// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device whose lock is held by chance, in virtual time.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use crate::address_space::{Again, Grace, Invalidation, Notifier, Step};
use crate::random::Random;
use crate::sync::Plain;

/// Virtual time.
#[derive(Debug)]
pub(super) struct Clock(Plain<Duration>);

impl Default for Clock {
    fn default() -> Self {
        Self(Plain::new(Duration::ZERO))
    }
}

impl Clock {
    pub(super) fn now(&self) -> Duration {
        *self.0.lock()
    }

    pub(super) fn pass(&self, time: Duration) {
        *self.0.lock() += time;
    }
}

/// Draws `true` with this probability.
pub(super) fn chance(random: &mut Random, probability: f64) -> bool {
    let drawn = u32::try_from(random.number() >> 32).unwrap_or(u32::MAX);
    f64::from(drawn) < probability * (f64::from(u32::MAX) + 1.0)
}

/// A device whose lock is free and held by turns, each for a time that is distributed exponentially.
#[derive(Debug)]
pub(super) struct Timed {
    clock: Arc<Clock>,
    range: Range<u64>,
    duty: f64,
    hold: Duration,
    state: Plain<State>,
}

#[derive(Debug)]
struct State {
    random: Random,
    /// When the lock was looked at, and whether it was held.
    seen: Option<(Duration, bool)>,
    deferred: Vec<Arc<Grace>>,
}

impl Timed {
    pub(super) fn new(
        clock: &Arc<Clock>,
        range: Range<u64>,
        (duty, hold): (f64, Duration),
        random: Random,
    ) -> Self {
        let state = Plain::new(State { random, seen: None, deferred: Vec::new() });
        Self { clock: Arc::clone(clock), range, duty, hold, state }
    }

    /// The share of a lock's state that is left after `time`.
    pub(super) fn memory(duty: f64, hold: Duration, time: Duration) -> f64 {
        if hold.is_zero() || duty <= 0.0 || duty >= 1.0 {
            return if time.is_zero() || duty >= 1.0 { 1.0 } else { 0.0 };
        }
        // Rates of the end of a hold and of the end of a pause.
        let ends = 1.0 / hold.as_secs_f64();
        let begins = ends * duty / (1.0 - duty);
        (-(ends + begins) * time.as_secs_f64()).exp()
    }

    fn is_held(&self, state: &mut State) -> bool {
        let now = self.clock.now();
        let probability = match state.seen {
            None => self.duty,
            Some((at, was)) => {
                let before = if was { 1.0 } else { 0.0 };
                self.duty + (before - self.duty) * Self::memory(self.duty, self.hold, now - at)
            }
        };
        let is_held = chance(&mut state.random, probability);
        state.seen = Some((now, is_held));
        is_held
    }

    /// Those that used the device have left it. Returns whether anything was deferred.
    pub(super) fn settle(&self) -> bool {
        let deferred = core::mem::take(&mut self.state.lock().deferred);
        deferred.iter().for_each(|grace| {
            grace.pass();
        });
        !deferred.is_empty()
    }
}

impl Notifier for Timed {
    fn start(&self, invalidation: &Invalidation<'_>) -> Result<(), Again> {
        let asked = &invalidation.range;
        let overlaps = self.range.start < asked.end && asked.start < self.range.end;
        if invalidation.tests_range && !overlaps {
            return Ok(());
        }
        let mut state = self.state.lock();
        match invalidation.step {
            Step::Block => Ok(()),
            Step::Bail => Err(Again),
            _ if !self.is_held(&mut state) => Ok(()),
            Step::Try => Err(Again),
            Step::Defer => {
                invalidation.grace.defer();
                state.deferred.push(Arc::clone(invalidation.grace));
                Ok(())
            }
        }
    }

    fn end(&self, _: &Invalidation<'_>) {}
}
