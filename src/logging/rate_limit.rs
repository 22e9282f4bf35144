// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeps what a guest can cause from filling the log: a rate for what happens, and a latch for what
//! lasts. Each kind of message has one of its own, or a frequent one would hide a rare one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lock::lock;

use log::warn;

/// At most this many messages are let through in each [`PERIOD`].
const BURST: u32 = 10;
/// The span over which messages are counted.
const PERIOD: Duration = Duration::from_secs(10);

/// Lets a bounded number of messages through and says how many it has swallowed.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    passed: u32,
    swallowed: u64,
}

impl LogLimit {
    /// Calls `log` unless too much was logged of late.
    pub(crate) fn run(&self, log: impl FnOnce()) {
        let (pass, swallowed) = self.admit(Instant::now());
        if swallowed > 0 {
            warn!("{swallowed} messages of this kind were left out");
        }
        if pass {
            log();
        }
    }

    /// Whether a message passes at `now`, and how many were swallowed in the window that ended.
    fn admit(&self, now: Instant) -> (bool, u64) {
        let mut window = lock(&self.window);
        let mut swallowed = 0;
        if window.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            swallowed = window.swallowed;
            *window = Window { since: Some(now), ..Window::default() };
        }
        if window.passed < BURST {
            window.passed += 1;
            (true, swallowed)
        } else {
            window.swallowed += 1;
            (false, swallowed)
        }
    }
}

/// Says that a state has begun, once, and that it has ended, once.
///
/// A guest may change the state as often as it likes, so that changes are limited like other
/// messages. A state that lasts is said all the same, by the next look at it that the limit lets
/// through.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    /// What was said last.
    said: AtomicBool,
    window: Mutex<Window>,
}

impl Latch {
    /// The state holds now, or does not: calls `begins` or `ends` unless that was said last. To be
    /// called with every look at the state; costs nothing while it stays.
    pub(crate) fn set(&self, holds: bool, begins: impl FnOnce(), ends: impl FnOnce()) {
        self.set_at(Instant::now, holds, begins, ends);
    }

    fn set_at(
        &self,
        now: impl FnOnce() -> Instant,
        holds: bool,
        begins: impl FnOnce(),
        ends: impl FnOnce(),
    ) {
        if self.said.load(Ordering::Relaxed) == holds {
            return;
        }
        let mut window = lock(&self.window);
        let now = now();
        if window.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            *window = Window { since: Some(now), ..Window::default() };
        }
        // Another thread may have said it meanwhile.
        if window.passed >= BURST || self.said.swap(holds, Ordering::Relaxed) == holds {
            return;
        }
        window.passed += 1;
        if holds { begins() } else { ends() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let limit = LogLimit::default();
        let start = Instant::now();
        let passed = (0..1000).filter(|_| limit.admit(start).0).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.admit(start + PERIOD), (true, 990));
        assert_eq!(limit.admit(start + PERIOD), (true, 0));
    }

    #[test]
    fn a_lasting_state_is_said_once_at_each_end() {
        let latch = Latch::default();
        let said = std::cell::RefCell::new(Vec::new());
        let start = Instant::now();
        let look = |at: Instant, holds| {
            latch.set_at(
                || at,
                holds,
                || said.borrow_mut().push("begins"),
                || said.borrow_mut().push("ends"),
            );
        };
        for _ in 0..1000 {
            look(start, false);
        }
        assert!(said.borrow().is_empty());
        for _ in 0..1000 {
            look(start, true);
        }
        for _ in 0..1000 {
            look(start, false);
        }
        assert_eq!(*said.borrow(), ["begins", "ends"]);
        // A state that comes and goes is limited, and one that lasts is said after all.
        for _ in 0..1000 {
            look(start, true);
            look(start, false);
        }
        look(start, true);
        assert_eq!(said.borrow().len(), 10);
        look(start + PERIOD, true);
        assert_eq!(said.borrow().last(), Some(&"begins"));
        assert_eq!(said.borrow().len(), 11);
    }
}
