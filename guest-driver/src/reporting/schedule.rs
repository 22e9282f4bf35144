// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the next pass is due (`page_reporting_notify`, and the delayed work that it schedules).

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;
#[cfg(feature = "std")]
use std::sync::Condvar;

use super::clock::Clock;
use crate::sync::{AtomicU8, Ordering, Plain, PlainGuard};

/// Nothing to do until something is freed.
const IDLE: u8 = 0;
/// A pass was asked for and has not begun.
const REQUESTED: u8 = 1;
/// A pass is under way, and nothing was asked for since it began.
const ACTIVE: u8 = 2;

/// Asks for a pass one delay after the first free that needs reporting, and for another one if
/// something is freed while a pass is under way. No thread polls for work meanwhile.
pub struct Schedule {
    state: AtomicU8,
    clock: Arc<dyn Clock>,
    delay: Duration,
    /// No scheduling point: it is held for some instructions only.
    timer: Plain<Timer>,
    #[cfg(feature = "std")]
    changed: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    due: Option<Duration>,
    closed: bool,
}

impl Schedule {
    /// Registering asks for a pass.
    pub(super) fn new(clock: Arc<dyn Clock>, delay: Duration) -> Self {
        let due = Some(clock.now().saturating_add(delay));
        Self {
            state: AtomicU8::new(REQUESTED),
            clock,
            delay,
            timer: Plain::new(Timer { due, closed: false }),
            #[cfg(feature = "std")]
            changed: Condvar::new(),
        }
    }

    /// Something that needs reporting was freed, and a pass will find it. One load if a pass was
    /// requested already.
    ///
    /// The load may not be taken before the mark is set, or a pass that begins in between would
    /// neither see the mark nor be followed by another.
    pub(super) fn request(&self) {
        if self.state.load(Ordering::SeqCst) != REQUESTED {
            self.request_first();
        }
    }

    #[cold]
    fn request_first(&self) {
        // What is freed during a pass is for its end to see.
        if self.state.swap(REQUESTED, Ordering::SeqCst) == IDLE {
            self.arm();
        }
    }

    fn arm(&self) {
        self.timer().due = Some(self.clock.now().saturating_add(self.delay));
        self.notify();
    }

    fn timer(&self) -> PlainGuard<'_, Timer> {
        self.timer.lock()
    }

    fn notify(&self) {
        #[cfg(feature = "std")]
        self.changed.notify_all();
    }

    /// A pass begins: what is freed from now on asks for another.
    pub(super) fn begin(&self) {
        self.timer().due = None;
        self.state.swap(ACTIVE, Ordering::SeqCst);
    }

    /// It is over; another one comes a delay from now if something was freed meanwhile, or `again`.
    pub(super) fn end(&self, again: bool) {
        if again {
            self.state.swap(REQUESTED, Ordering::SeqCst);
            self.arm();
        } else if self
            .state
            .compare_exchange(ACTIVE, IDLE, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            self.arm();
        }
    }

    /// Whether no pass is under way and none will be until something is freed.
    pub fn is_idle(&self) -> bool {
        self.state.load(Ordering::SeqCst) == IDLE
    }

    /// When the next pass is due, by the reporter's clock; none on a quiet guest, and while a pass is
    /// under way.
    pub fn due(&self) -> Option<Duration> {
        self.timer().due
    }

    /// Whether a pass is due now.
    pub fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= self.clock.now())
    }

    /// Waits until a pass is due, in real time; false as soon as the schedule is closed.
    #[cfg(feature = "std")]
    pub fn wait(&self) -> bool {
        let mut timer = self.timer();
        while !timer.closed {
            let left = timer.due.map(|due| due.saturating_sub(self.clock.now()));
            timer = match left {
                Some(Duration::ZERO) => return true,
                Some(left) => {
                    let waited = self.changed.wait_timeout(timer, left);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(timer);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner)
                }
            };
        }
        false
    }

    /// Ends the wait of every thread, and all later ones.
    pub fn close(&self) {
        self.timer().closed = true;
        self.notify();
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, delay, timer, .. } = self;
        f.debug_struct("Schedule")
            .field("state", state)
            .field("delay", delay)
            .field("timer", timer)
            .finish_non_exhaustive()
    }
}
