// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a task has made no progress.

use std::time::Duration;

/// The most that the time between two looks counts: if the next look comes later, the whole guest did
/// not run, or little of it, and the task need not be stuck.
const MOST: Duration = Duration::from_millis(100);

/// A task that is looked at again and again.
pub(super) struct Stall {
    pages: u64,
    now: Duration,
    longest: Duration,
}

impl Stall {
    /// A task that has faulted in `pages`.
    pub(super) fn new(pages: u64) -> Self {
        Self { pages, now: Duration::ZERO, longest: Duration::ZERO }
    }

    /// A look at it, `time` after the last.
    pub(super) fn look(&mut self, pages: u64, rests: bool, time: Duration) {
        if pages != self.pages || rests {
            self.pages = pages;
            self.now = Duration::ZERO;
        } else {
            self.now += time.min(MOST);
        }
        self.longest = self.longest.max(self.now);
    }

    /// The time without a page that has not ended, in milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX)
    }

    /// The longest, in milliseconds.
    pub(super) fn longest_ms(&self) -> u64 {
        u64::try_from(self.longest.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stall_ends_with_a_page_or_a_rest() {
        let look = Duration::from_millis(20);
        let mut stall = Stall::new(7);
        for pages in [7, 7, 7, 8, 8] {
            stall.look(pages, false, look);
        }
        assert_eq!((stall.now_ms(), stall.longest_ms()), (20, 60));
        stall.look(8, true, look);
        assert_eq!((stall.now_ms(), stall.longest_ms()), (0, 60));
    }

    #[test]
    fn late_look_does_not_count_in_full() {
        let mut stall = Stall::new(7);
        stall.look(7, false, Duration::from_secs(9));
        assert_eq!(stall.longest_ms(), 100);
    }
}
