// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeps lines that a guest, a frontend or a control client can repeat from filling the log.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::lock::lock;

use log::Level;

/// The span over which the lines of a place in the source are counted.
const PERIOD: Duration = Duration::from_secs(10);

/// The most lines of one place in each [`PERIOD`]. Debugging is for those who want to see a lot.
fn most(level: Level) -> u32 {
    if level >= Level::Debug { 10_000 } else { 64 }
}

/// A place in the source that logs: its file and line.
pub(super) type Site = (&'static str, u32);

/// How often each place in the source has logged lately.
#[derive(Debug, Default)]
pub(super) struct Sites(Mutex<HashMap<Site, Window>>);

#[derive(Debug)]
struct Window {
    since: Instant,
    passed: u32,
    left_out: u64,
}

impl Sites {
    /// Whether a line passes at `now`, and how many were left out in the span before.
    pub(super) fn admit(&self, site: Site, level: Level, now: Instant) -> (bool, u64) {
        let mut sites = self.lock();
        let fresh = Window { since: now, passed: 0, left_out: 0 };
        let window = sites.entry(site).or_insert(fresh);
        let mut left_out = 0;
        if now.duration_since(window.since) >= PERIOD {
            left_out = window.left_out;
            *window = Window { since: now, passed: 0, left_out: 0 };
        }
        let passes = window.passed < most(level);
        if passes {
            window.passed += 1;
        } else {
            window.left_out = window.left_out.saturating_add(1);
        }
        (passes, left_out)
    }

    /// What was left out and not said yet.
    pub(super) fn take_left_out(&self) -> Vec<(Site, u64)> {
        let mut sites = self.lock();
        let left_out = |(site, window): (&Site, &mut Window)| {
            let left_out = std::mem::take(&mut window.left_out);
            (left_out > 0).then_some((*site, left_out))
        };
        sites.iter_mut().filter_map(left_out).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Site, Window>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_place_is_cut_and_counted() {
        let sites = Sites::default();
        let (flood, other) = (("a.rs", 1), ("a.rs", 2));
        let start = Instant::now();
        let passed = |level| (0..1000).filter(|_| sites.admit(flood, level, start).0).count();
        assert_eq!(passed(Level::Info), 64);
        assert_eq!(sites.admit(other, Level::Info, start), (true, 0));
        assert_eq!(sites.admit(flood, Level::Info, start + PERIOD), (true, 936));
        for _ in 0..70 {
            sites.admit(flood, Level::Info, start + PERIOD);
        }
        assert_eq!(sites.take_left_out(), [(flood, 7)]);
        assert_eq!(sites.take_left_out(), []);
    }
}
