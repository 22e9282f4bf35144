//! When nothing may be discarded, and what may never be.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::metrics::SkipReason;

/// Why discarding stands still. Each cause comes and goes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The operator has paused it.
    Operator,
    /// The frontend logs dirty pages (`VHOST_F_LOG_ALL`): a live migration is under way.
    Migration,
    /// A postcopy migration is under way: pages that are missing here are still to come.
    Postcopy,
}

/// What keeps memory from being discarded; set from any thread.
#[derive(Debug, Default)]
pub struct Inhibit {
    causes: AtomicU8,
}

impl Inhibit {
    /// Says that `cause` holds, or does not hold any more.
    pub fn set(&self, cause: Cause, holds: bool) {
        let bit = 1 << cause as u8;
        if holds {
            self.causes.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.causes.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Whether `cause` holds.
    pub fn holds(&self, cause: Cause) -> bool {
        self.causes.load(Ordering::SeqCst) & (1 << cause as u8) != 0
    }

    /// Why nothing may be discarded now; `None` if something may.
    pub fn reason(&self) -> Option<SkipReason> {
        if self.holds(Cause::Migration) {
            return Some(SkipReason::Migrating);
        }
        if self.holds(Cause::Postcopy) {
            return Some(SkipReason::Postcopy);
        }
        self.holds(Cause::Operator).then_some(SkipReason::Paused)
    }
}
