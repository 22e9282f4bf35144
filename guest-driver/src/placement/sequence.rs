// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A sequence count (`seqcount_t`): readers see whether they have raced with a writer.

use crate::sync::{self, AtomicU64, Ordering, fence};

/// Odd while something that it covers is being changed.
#[derive(Debug, Default)]
pub(super) struct SeqCount(AtomicU64);

impl SeqCount {
    /// Waits until nothing is being changed (`read_seqcount_begin`).
    pub(super) fn read_begin(&self) -> u64 {
        loop {
            let count = self.0.load(Ordering::Acquire);
            if count.is_multiple_of(2) {
                return count;
            }
            sync::yield_now();
        }
    }

    /// Whether something was changed since the reader has got `begun` (`read_seqcount_retry`).
    pub(super) fn read_retry(&self, begun: u64) -> bool {
        fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed) != begun
    }

    /// Calls `change`, with the count odd. There must be one writer at a time.
    pub(super) fn write<T>(&self, change: impl FnOnce() -> T) -> T {
        let count = self.0.load(Ordering::Relaxed);
        self.0.store(count + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let changed = change();
        self.0.store(count + 2, Ordering::Release);
        changed
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn reader_sees_whether_it_raced() {
        let count = SeqCount::default();
        let begun = count.read_begin();
        assert!(!count.read_retry(begun));
        count.write(|| assert!(count.read_retry(begun)));
        assert!(count.read_retry(begun) && !count.read_retry(count.read_begin()));
    }
}
