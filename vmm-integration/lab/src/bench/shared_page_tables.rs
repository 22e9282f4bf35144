// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `shared-page-tables`: faults and forks a second by what keeps a shared page table in place.
//!
//! Each scheme and no lock at all take turns. Without a lock no rule breaks here, since each process unshares its
//! own page tables only: nothing punches.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use guest_driver::hugetlb::measure::{Load, Rates, run};
use guest_driver::hugetlb::{Locks, Scheme};
use rustix::time::{ClockId, clock_gettime};

use super::pairs::{Estimate, orders};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::parameters::parameters;
use crate::parameters::takes::{Real, Several, Whole};
use crate::progress;
use crate::store::{Findings, Place};

/// Threads of each kind. The published figures are of 1 and of 24.
const THREADS: [usize; 5] = [1, 2, 4, 8, 24];

/// See the module.
pub(super) struct SharedPageTables;

/// What the threads do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Test {
    /// Fault a file in, and map it again.
    Faults,
    /// Fork a child that exits.
    Forks,
    /// As many do the one as the other.
    Combined,
}

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        scheme: Vec<Scheme>, Several::any(), Scheme::SOUND.to_vec(), Scheme::SOUND.to_vec(),
            "what keeps a page table in place under a fault";
        test: Vec<Test>, Several::any(), vec![Test::Faults, Test::Forks, Test::Combined],
            vec![Test::Faults, Test::Forks, Test::Combined], "what the threads do";
        locks: Vec<Locks>, Several::any(), vec![Locks::Stealing, Locks::InOrder],
            vec![Locks::Stealing, Locks::InOrder],
            "reader/writer locks: those that steal and spin as Linux's do, or fair ones";
        pieces: usize, Whole(1, 1024), 250, 250, "page tables of the file, which a fork shares one by one";
        entries: usize, Whole(1, 512), 64, 64, "entries of a page table";
        turns: usize, Whole(1, 1000), 9, 21, "turns of a scheme and of no lock, of which the median counts";
        seconds: f64, Real(0.005, 600.0), 0.06, 0.5, "seconds of a turn";
    }
}

/// A scheme under a test.
pub(super) struct Under {
    test: Test,
    locks: Locks,
    scheme: Scheme,
}

impl fmt::Display for Under {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.test, self.locks, self.scheme)
    }
}

impl Case for Under {
    fn place(&self) -> Place {
        let table = format!("{}-{}", self.test, self.locks);
        Place { table, column: self.scheme.to_string() }
    }
}

impl Experiment for SharedPageTables {
    type Parameters = Settings;
    type Case = Under;

    fn name(&self) -> &'static str {
        "shared-page-tables"
    }

    fn about(&self) -> &'static str {
        "Counts faults and forks of processes that share page tables of hugetlbfs, by the lock that keeps a \
         page table in place under a fault, beside no lock."
    }

    fn repeats(&self, _: &Under) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, settings: &Settings) -> Vec<Under> {
        let mut cases = Vec::new();
        for &test in &settings.test {
            for &locks in &settings.locks {
                let of = |&scheme: &Scheme| Under { test, locks, scheme };
                cases.extend(settings.scheme.iter().map(of));
            }
        }
        cases
    }

    fn run(&self, case: &Under, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut points = Points::default();
        for threads in THREADS {
            context.progress.say(&format!("{threads} threads"));
            let mut turns = Vec::new();
            for scheme_first in orders(context.seed, settings.turns) {
                progress::check()?;
                let turn = |scheme| turn(case, settings, scheme, threads);
                turns.push(if scheme_first {
                    let with = turn(case.scheme)?;
                    Pair { with, without: turn(Scheme::Nothing)? }
                } else {
                    let without = turn(Scheme::Nothing)?;
                    Pair { with: turn(case.scheme)?, without }
                });
            }
            figures(case.test, threads, &turns, &mut findings, &mut points);
        }
        points.write(&mut findings);
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        findings.note(format!(
            "Real threads on {cpus} CPUs: with more threads than CPUs a holder of a lock may be preempted, and \
             a waiter may wait for a CPU. A ratio is over the rate without a lock, in turns; low to high is an \
             interval that holds the true median.",
        ));
        Ok(findings)
    }
}

/// A turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    faults: f64,
    forks: f64,
    /// Waits of each fault or fork for a lock of the file.
    waits: f64,
    /// CPUs in use.
    busy: f64,
}

/// What of a turn a figure is about.
type Of = fn(&Turn) -> f64;

/// Turns that followed each other.
struct Pair {
    with: Turn,
    without: Turn,
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[allow(clippy::cast_precision_loss)] // rates
fn turn(case: &Under, settings: &Settings, scheme: Scheme, threads: usize) -> Result<Turn> {
    let (faulters, forkers) = match case.test {
        Test::Faults => (threads, 0),
        Test::Forks => (0, threads),
        Test::Combined => (threads, threads),
    };
    let Settings { pieces, entries, seconds, .. } = *settings;
    let load = Load { faulters, forkers, pieces, entries, locks: case.locks, ..Load::of(scheme) };
    let before = cpu_time();
    let rates = run(load, Duration::from_secs_f64(seconds))
        .with_context(|| format!("{scheme} with {threads} threads"))?;
    let cpu = cpu_time().saturating_sub(before);
    let Rates { faults, forks, waits, elapsed, .. } = rates;
    Ok(Turn {
        faults: rates.faults_per_second(),
        forks: rates.forks_per_second(),
        waits: waits as f64 / (faults + forks) as f64,
        busy: cpu.as_secs_f64() / elapsed.as_secs_f64(),
    })
}

/// A curve each of rates and of their ratios, by threads.
#[derive(Default)]
struct Points(Vec<(&'static str, f64, Estimate, Estimate)>);

impl Points {
    fn write(&self, findings: &mut Findings) {
        for kind in ["faults", "forks"] {
            let of: Vec<_> = self.0.iter().filter(|point| point.0 == kind).collect();
            if of.is_empty() {
                continue;
            }
            let rates = of.iter().map(|&&(_, threads, rate, _)| (threads, rate.median)).collect();
            let ratios =
                of.iter().map(|&&(_, threads, _, ratio)| (threads, ratio.median)).collect();
            let what = format!("{kind} a second of all threads, by threads");
            findings.series(kind, ("threads", "1/s"), &what, rates);
            let what = format!("{kind} a second over those without a lock, by threads");
            findings.series(&format!("{kind}-ratio"), ("threads", "ratio"), &what, ratios);
        }
    }
}

fn figures(
    test: Test,
    threads: usize,
    turns: &[Pair],
    findings: &mut Findings,
    points: &mut Points,
) {
    let by = match test {
        Test::Combined => format!("{threads} threads, beside as many of the other kind"),
        Test::Faults | Test::Forks => format!("{threads} threads"),
    };
    let kinds: [(&'static str, bool, Of); 2] = [
        ("faults", test != Test::Forks, |turn| turn.faults),
        ("forks", test != Test::Faults, |turn| turn.forks),
    ];
    let at = f64::from(u32::try_from(threads).unwrap_or(u32::MAX));
    for (kind, _, of) in kinds.into_iter().filter(|kind| kind.1) {
        let rate = Estimate::of(turns.iter().map(|pair| of(&pair.with)));
        let ratio = Estimate::of(turns.iter().map(|pair| of(&pair.with) / of(&pair.without)));
        let (Some(rate), Some(ratio)) = (rate, ratio) else { continue };
        findings.figure(
            &format!("{kind}-{threads}"),
            rate.median,
            "1/s",
            &format!("{kind} of {by}"),
        );
        let name = format!("{kind}-ratio-{threads}");
        let what = format!("{kind} of {by}, over those without a lock");
        findings.figure(&name, ratio.median, "", &what);
        findings.figure(&format!("{name}-low"), ratio.low, "", "lower end of its interval");
        findings.figure(&format!("{name}-high"), ratio.high, "", "upper end of its interval");
        points.0.push((kind, at, rate, ratio));
    }
    let others: [(&str, &str, Of); 2] = [
        ("waits", "waits of an operation in the queue of a lock of the file", |turn| turn.waits),
        ("busy", "CPUs in use", |turn| turn.busy),
    ];
    for (name, what, of) in others {
        if let Some(of) = Estimate::of(turns.iter().map(|pair| of(&pair.with))) {
            findings.figure(&format!("{name}-{threads}"), of.median, "", &format!("{what}, {by}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_faults_and_forks_beside_no_lock() {
        let settings = Settings {
            scheme: Scheme::SOUND.to_vec(),
            test: vec![Test::Combined],
            locks: vec![Locks::Stealing, Locks::InOrder],
            pieces: 3,
            entries: 2,
            turns: 1,
            seconds: 0.02,
        };
        for case in SharedPageTables.cases(&settings) {
            for scheme in [case.scheme, Scheme::Nothing] {
                let turn = turn(&case, &settings, scheme, 2).unwrap();
                assert!(turn.faults > 0.0 && turn.forks > 0.0, "{case} {scheme}: {turn:?}");
                assert!(turn.busy > 0.0 && turn.waits >= 0.0, "{case} {scheme}: {turn:?}");
            }
        }
    }

    #[test]
    fn only_what_the_threads_do_has_figures() {
        let turn = Turn { faults: 4.0, forks: 2.0, waits: 1.0, busy: 1.5 };
        let pair = || Pair { with: turn, without: Turn { faults: 8.0, ..turn } };
        for (test, kinds) in [
            (Test::Faults, &["faults"][..]),
            (Test::Forks, &["forks"]),
            (Test::Combined, &["faults", "forks"]),
        ] {
            let (mut findings, mut points) = (Findings::default(), Points::default());
            figures(test, 2, &[pair(), pair()], &mut findings, &mut points);
            points.write(&mut findings);
            for kind in ["faults", "forks"] {
                let has = kinds.contains(&kind);
                assert_eq!(findings.figures.contains_key(&format!("{kind}-2")), has, "{test}");
                assert_eq!(findings.series.contains_key(&format!("{kind}-ratio")), has, "{test}");
            }
            if let Some(ratio) = findings.figures.get("faults-ratio-2") {
                assert_eq!(ratio.value, 0.5);
            }
        }
    }
}
