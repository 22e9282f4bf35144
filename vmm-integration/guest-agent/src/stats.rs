//! What the threads of a race have done, while they are at it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use guest_agent::Verified;
use guest_agent::race::{OK, Operation, RaceReport, UnderWay};

/// What all threads count into.
pub(crate) struct Stats {
    began: Instant,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    operations: BTreeMap<&'static str, Operation>,
    verified: Verified,
    under_way: BTreeMap<u64, (String, Instant)>,
    last_ticket: u64,
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), counts: Mutex::default() }
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
            counts.under_way.insert(ticket, (format!("{kind} {}", on()), started));
            ticket
        };
        let result = act();
        let took = micros(started.elapsed());
        let outcome = match &result {
            Ok(_) => OK.to_owned(),
            Err(error) => crate::errno_name(error).unwrap_or_else(|| format!("{error:#}")),
        };
        let mut counts = self.lock();
        counts.under_way.remove(&ticket);
        let operation = counts.operations.entry(kind).or_default();
        *operation.outcomes.entry(outcome).or_default() += 1;
        operation.total_us += took;
        operation.longest_us = operation.longest_us.max(took);
        drop(counts);
        result
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
                .map(|(what, since)| UnderWay { what: what.clone(), ms: millis(since.elapsed()) })
                .collect(),
        }
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
        let stats = Stats::new();
        let on = || "memory7".to_owned();
        stats.time("offline", on, || Ok(())).unwrap();
        for _ in 0..2 {
            stats.time("offline", on, || -> Result<()> { Err(Errno::EBUSY.into()) }).unwrap_err();
        }
        stats.time("load", on, || -> Result<()> { Err(anyhow!("odd")) }).unwrap_err();
        let within = stats.time("offline", on, || Ok(stats.report(true, 0).under_way)).unwrap();
        assert_eq!(within[0].what, "offline memory7");

        let report = stats.report(false, 3);
        let offline = report.operation("offline");
        assert_eq!((offline.ok(), offline.outcomes["EBUSY"], offline.tries()), (2, 2, 4));
        assert_eq!(report.operation("load").outcomes["odd"], 1);
        assert_eq!(report.under_way, []);
    }
}
