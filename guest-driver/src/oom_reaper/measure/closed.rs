// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The closed forms.
//!
//! With k the share of the chunks that are of interest, d the duty of a lock, m chunks a VMA, v VMAs a
//! process and a attempts:
//!
//! | scheme | share that is reaped |
//! |---|---|
//! | `skip-notified`, `bail-out` | (1-k)^(m·v): the process has no notifier |
//! | `driver-range`, `interval-tree` | (1-k)^m: the VMA has none |
//! | `interval-tree-chunks` | 1-k |
//! | `try-lock-chunks` | 1-k·B, where B is the probability that a lock is held at all attempts |
//! | `try-lock` | the same for m = 1. Otherwise the sum over n of the probability of n interests in a VMA, times 1-(1-(1-d)^n)^a |
//! | `deferred` | 1 |
//!
//! B is d^a if the attempts find the lock independently. If its holds last h on average, and the attempts
//! are T apart, it is d·(d+(1-d)·e^(-T/(h·(1-d))))^(a-1): the longer a hold lasts, the less a second
//! attempt is worth.

use super::load::Load;
use super::timed::Timed;
use crate::oom_reaper::scheme::Scheme;

impl Load {
    /// The share of the reapable that `scheme` reaps, if there is a closed form. It leaves the time that
    /// freeing pages takes out of account.
    pub fn expected(&self, scheme: Scheme) -> Option<f64> {
        let (free, chunks) = (1.0 - self.coverage, power(self.chunks));
        match scheme {
            Scheme::AlwaysBlock => None,
            Scheme::SkipNotified | Scheme::BailOut => Some(free.powi(chunks * power(self.vmas))),
            Scheme::DriverRange | Scheme::IntervalTree => Some(free.powi(chunks)),
            Scheme::IntervalTreeChunks => Some(free),
            Scheme::TryLockChunks => Some(1.0 - self.coverage * self.always_held()),
            Scheme::TryLock if self.chunks == 1 => Some(1.0 - self.coverage * self.always_held()),
            Scheme::TryLock => self.hold.is_zero().then(|| self.whole_vmas()),
            Scheme::Deferred => Some(1.0),
        }
    }

    /// The probability that a lock is held at every attempt.
    fn always_held(&self) -> f64 {
        let memory = Timed::memory(self.duty, self.hold, self.pause);
        let again = self.duty + (1.0 - self.duty) * memory;
        self.duty * again.powi(power(u64::from(self.attempts)) - 1)
    }

    /// The share of the VMAs of which an attempt finds all locks free at once.
    fn whole_vmas(&self) -> f64 {
        let attempts = power(u64::from(self.attempts));
        let chunks = power(self.chunks);
        let mut ways = 1.0;
        let mut share = 0.0;
        for interests in 0..=chunks {
            let others = chunks - interests;
            let of = ways * self.coverage.powi(interests) * (1.0 - self.coverage).powi(others);
            let all_free = (1.0 - self.duty).powi(interests);
            share += of * (1.0 - (1.0 - all_free).powi(attempts));
            ways *= f64::from(others) / f64::from(interests + 1);
        }
        share
    }
}

fn power(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
