// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the threads of a race have done, while they are at it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_agent::Verified;
use guest_agent::race::{OFFLINE, OK, ONLINE, Operation, REPORT, RaceReport, USE, UnderWay};
use nix::time::{ClockId, clock_gettime};

use crate::offlines::{self, Span};

/// The times of so many blocks that went offline are kept, and of so many reports.
const MOST_SPANS: usize = 1 << 20;

/// What all threads count into.
pub(crate) struct Stats {
    began: Instant,
    /// The same by `CLOCK_MONOTONIC`, which the kernel's trace uses.
    began_monotonic: Duration,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    operations: BTreeMap<&'static str, Operation>,
    verified: Verified,
    under_way: BTreeMap<u64, (&'static str, String, Instant)>,
    last_ticket: u64,
    /// When something was done last, of what offlining may fail for.
    ended: BTreeMap<String, Instant>,
    offlines: Vec<Span>,
    reports: Vec<Span>,
}

impl Stats {
    pub(crate) fn new() -> Result<Self> {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).context("the guest's clock")?;
        Ok(Self {
            began: Instant::now(),
            began_monotonic: Duration::from(monotonic),
            counts: Mutex::default(),
        })
    }

    /// Since the race began.
    fn span(&self, started: Instant, took: Duration) -> Span {
        let start_us = micros(started.duration_since(self.began));
        Span { start_us, end_us: start_us + micros(took) }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one thing and counts what came of it. `on` says with what, for as long as it lasts.
    pub(crate) fn time<T>(
        &self,
        kind: &'static str,
        on: impl FnOnce() -> String,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let ticket = {
            let mut counts = self.lock();
            counts.last_ticket += 1;
            let ticket = counts.last_ticket;
            counts.under_way.insert(ticket, (kind, format!("{kind} {}", on()), started));
            ticket
        };
        let result = act();
        let elapsed = started.elapsed();
        let took = micros(elapsed);
        let outcome = match &result {
            Ok(_) => OK.to_owned(),
            Err(error) => crate::system::errno_name(error).unwrap_or_else(|| format!("{error:#}")),
        };
        let mut counts = self.lock();
        let what = counts.under_way.remove(&ticket).map(|(_, what, _)| what);
        if kind == OFFLINE && counts.offlines.len() < MOST_SPANS {
            let span = self.span(started, elapsed);
            counts.offlines.push(span);
        } else if let Some(what) = what.filter(|_| may_disturb(kind)) {
            counts.ended.insert(what, started + elapsed);
        }
        let beside = (kind == OFFLINE && result.is_err()).then(|| counts.beside(started));
        let operation = counts.operations.entry(kind).or_default();
        if let Some(beside) = beside {
            *operation.failed_beside.entry(beside).or_default() += 1;
        }
        *operation.outcomes.entry(outcome).or_default() += 1;
        operation.total_us += took;
        operation.longest_us = operation.longest_us.max(took);
        drop(counts);
        result
    }

    /// Counts a report that the driver had acknowledged, between two times of `CLOCK_MONOTONIC`.
    pub(crate) fn reported(&self, begin: Duration, end: Duration) {
        let since = |time: Duration| micros(time.saturating_sub(self.began_monotonic));
        let span = Span { start_us: since(begin), end_us: since(end) };
        let took = micros(end.saturating_sub(begin));
        let mut counts = self.lock();
        if counts.reports.len() < MOST_SPANS {
            counts.reports.push(span);
        }
        let operation = counts.operations.entry(REPORT).or_default();
        *operation.outcomes.entry(OK.to_owned()).or_default() += 1;
        operation.total_us += took;
        operation.longest_us = operation.longest_us.max(took);
    }

    /// Counts what a look at memory has shown.
    pub(crate) fn verified(&self, verified: Verified) {
        let mut counts = self.lock();
        counts.verified.checked_bytes += verified.checked_bytes;
        counts.verified.mismatches += verified.mismatches;
        counts.verified.first = counts.verified.first.take().or(verified.first);
    }

    /// All of it.
    pub(crate) fn report(&self, running: bool, migrated_pages: u64) -> RaceReport {
        let counts = self.lock();
        let millis = |duration: Duration| micros(duration) / 1000;
        let operations = counts.operations.iter();
        RaceReport {
            running,
            elapsed_ms: millis(self.began.elapsed()),
            operations: operations.map(|(name, o)| ((*name).to_owned(), o.clone())).collect(),
            verified_bytes: counts.verified.checked_bytes,
            mismatches: counts.verified.mismatches,
            first: counts.verified.first.clone(),
            migrated_pages,
            under_way: counts
                .under_way
                .values()
                .map(|(_, what, since)| UnderWay {
                    what: what.clone(),
                    ms: millis(since.elapsed()),
                })
                .collect(),
            offlines: (!running).then(|| offlines::summary(&counts.offlines, &counts.reports)),
        }
    }
}

/// Whether offlining may fail because of it. Threads use memory all the time.
fn may_disturb(kind: &str) -> bool {
    ![OFFLINE, ONLINE, USE].contains(&kind)
}

impl Counts {
    /// What else was under way at any time since then, by name.
    fn beside(&self, since: Instant) -> String {
        let running = self.under_way.values().filter(|(kind, ..)| may_disturb(kind));
        let running = running.map(|(_, what, _)| what.as_str());
        let ended = self.ended.iter().filter(|(_, end)| **end >= since);
        let names: BTreeSet<&str> = running.chain(ended.map(|(what, _)| what.as_str())).collect();
        names.into_iter().collect::<Vec<_>>().join(" and ")
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use nix::errno::Errno;

    #[test]
    fn outcomes_are_counted_by_the_name_of_the_error() {
        let stats = Stats::new().unwrap();
        let on = || "memory7".to_owned();
        stats.time("offline", on, || Ok(())).unwrap();
        for _ in 0..2 {
            stats.time("offline", on, || -> Result<()> { Err(Errno::EBUSY.into()) }).unwrap_err();
        }
        stats.time("load", on, || -> Result<()> { Err(anyhow!("odd")) }).unwrap_err();
        let within = stats.time("offline", on, || Ok(stats.report(true, 0).under_way)).unwrap();
        assert_eq!(within[0].what, "offline memory7");

        let resize = || "1 of 2048 KiB".to_owned();
        let busy = || -> Result<()> { Err(Errno::EBUSY.into()) };
        let beside = || stats.time("offline", on, busy).map_err(|_| ());
        stats.time("huge-pages", resize, || Ok(beside())).unwrap().unwrap_err();

        let report = stats.report(false, 3);
        let offline = report.operation("offline");
        assert_eq!((offline.ok(), offline.outcomes["EBUSY"], offline.tries()), (2, 3, 5));
        let expected = [("", 2), ("huge-pages 1 of 2048 KiB", 1)];
        let expected = expected.map(|(what, times)| (what.to_owned(), times));
        assert_eq!(offline.failed_beside, BTreeMap::from(expected));
        assert_eq!(report.offlines.as_ref().map(|offlines| offlines.count), Some(5));
        assert_eq!(report.operation("load").outcomes["odd"], 1);
        assert_eq!(report.under_way, []);
    }
}
