// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The end of several threads, of which some pause.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What the threads look at.
#[derive(Default)]
pub(crate) struct Stop {
    stopped: AtomicBool,
    /// Wakes those that pause.
    over: (Mutex<()>, Condvar),
}

impl Stop {
    /// Ends them.
    pub(crate) fn now(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _guard = self.over.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.over.1.notify_all();
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    /// Waits for as long as that, or until it is over; says whether it goes on.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let guard = self.over.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.goes_on() && !time.is_zero() {
            // Woken for no reason it goes on a little early.
            drop(self.over.1.wait_timeout(guard, time));
        }
        self.goes_on()
    }
}
