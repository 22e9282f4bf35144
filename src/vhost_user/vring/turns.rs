// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which thread has a queue next: the control thread, before the worker.

use crate::lock::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::lock::yield_now;

/// Calls of the control thread that the worker lets go first.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// How many calls of the control thread wait for the lock, or have it.
    waiting: AtomicUsize,
    /// The control thread has called since the worker looked last.
    control_came: AtomicBool,
}

impl Turns {
    /// Runs `call` of the control thread, which takes the queue's lock, before the worker takes its
    /// next chain.
    pub(crate) fn control<T>(&self, call: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let result = call();
        // A swap like the worker's: all of them are in one order.
        self.control_came.swap(true, Ordering::AcqRel);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        result
    }

    /// Whether a call of the control thread waits for the lock, or has it.
    pub(crate) fn control_waits(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits until no call of the control thread waits for the lock or is likely to: after one it
    /// leaves time for another, `grace`. For the worker, before it takes the lock.
    pub(crate) fn worker(&self, mut grace: impl FnMut()) {
        loop {
            while self.control_waits() {
                yield_now();
            }
            if !self.control_came.swap(false, Ordering::AcqRel) {
                return;
            }
            grace();
        }
    }
}
