// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Time, real or virtual.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::time;

/// Time since some fixed moment.
pub trait Clock: Send + Sync {
    /// The time; it never goes back.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock ([`time::now`]), since it was created.
#[derive(Clone, Copy, Debug)]
pub struct RealClock(Duration);

impl RealClock {
    /// It is zero now.
    pub fn new() -> Self {
        Self(time::now())
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Duration {
        time::now().saturating_sub(self.0)
    }
}

/// A clock that stands still until it is advanced, so that a run in hours of the guest's time
/// takes moments and comes out the same each time.
#[derive(Debug, Default)]
pub struct VirtualClock {
    /// Nanoseconds: five centuries of them.
    now: AtomicU64,
}

impl VirtualClock {
    /// It is zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on by so much.
    pub fn advance(&self, by: Duration) {
        self.now.fetch_add(nanoseconds(by), Ordering::SeqCst);
    }

    /// Goes on to this moment, unless it is past that.
    pub fn advance_to(&self, at: Duration) {
        self.now.fetch_max(nanoseconds(at), Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::SeqCst))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
