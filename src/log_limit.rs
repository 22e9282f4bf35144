//! Keeps what a guest can cause from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
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
}
