// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A counter that stops at its largest value.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what a guest may name as large as it likes: a counter that wrapped would go back, and a
/// scraper would take that for a new daemon.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Counts `more`, from any thread.
    pub(super) fn add(&self, more: u64) {
        let grow = |now: u64| Some(now.saturating_add(more));
        // It never fails: there is always a next value.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
    }

    /// What was counted.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counter_grows_and_never_wraps(steps: Vec<u64>) {
            let counter = Counter::default();
            for step in steps {
                let before = counter.get();
                counter.add(step);
                prop_assert_eq!(counter.get(), before.saturating_add(step));
            }
        }
    }
}
