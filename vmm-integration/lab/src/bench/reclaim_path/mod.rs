// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `reclaim-path`: what a discard of the daemon costs processes that use the same memory file.
//!
//! | file | content |
//! |---|---|
//! | `settings` | the parameters |
//! | `path` | one discard, with the processes around it |
//! | `process` | a process that maps the file and touches it |
//! | `samples` | faults, timed |

mod path;
mod process;
mod samples;
mod settings;

use std::fmt;

use anyhow::Result;

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::progress;
use crate::store::{Findings, Place};
use path::Path;
use samples::{Faults, median};
use settings::{Backing, GIB, KIB, MIB, Processes, Settings, Tables, Touch};

/// See the module.
pub(super) struct ReclaimPath;

/// Microseconds that no fault is to take longer than.
const BOUND_US: f64 = 1000.0;

/// A memory file, the processes that map it, and what one of them touches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    backing: Backing,
    tables: Tables,
    processes: Processes,
    touch: Touch,
}

impl Mapped {
    fn column(&self) -> String {
        match self.backing {
            // Page tables of 4 KiB pages are never shared.
            Backing::Base => self.processes.to_string(),
            Backing::Hugetlb => format!("{}-{}", self.tables, self.processes),
        }
    }
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.backing, self.column(), self.touch)
    }
}

impl Case for Mapped {
    fn place(&self) -> Place {
        Place { table: format!("{}-{}", self.backing, self.touch), column: self.column() }
    }
}

impl Experiment for ReclaimPath {
    type Parameters = Settings;
    type Case = Mapped;

    fn name(&self) -> &'static str {
        "reclaim-path"
    }

    fn about(&self) -> &'static str {
        "Measures the time of page faults in the guest's memory file while the daemon discards part of \
         it, by the size of a discarding call, and the rate of discarding."
    }

    fn repeats(&self, _: &Mapped) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, settings: &Settings) -> Vec<Mapped> {
        let mut cases = Vec::new();
        for &backing in &settings.backing {
            let tables = match backing {
                Backing::Base => &[Tables::Private],
                Backing::Hugetlb => settings.tables.as_slice(),
            };
            for &touch in &settings.touch {
                for &tables in tables {
                    let case = |&processes| Mapped { backing, tables, processes, touch };
                    cases.extend(settings.processes.iter().map(case));
                }
            }
        }
        cases
    }

    fn run(&self, case: &Mapped, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut calls = match case.backing {
            Backing::Base => settings.calls_4k.clone(),
            Backing::Hugetlb => settings.calls_hugetlb.clone(),
        };
        calls.sort_unstable();
        let mut findings = Findings::default();
        let span = calls.last().copied().unwrap_or_default();
        let mut path = match Path::new(case.backing, case.tables, case.processes, span) {
            Ok(path) => path,
            Err(why) => {
                findings.note(format!("Not measured: {why:#}."));
                return Ok(findings);
            }
        };
        let mut measured =
            calls.iter().map(|&call| Measured::new(call)).collect::<Result<Vec<_>>>()?;
        let mut quiet = Faults::new()?;
        let mut to_map = None;
        for round in 0..settings.rounds {
            // The limits take turns, and none is always the first.
            let places = measured.len();
            for turn in 0..places {
                progress::check()?;
                let Some(measured) = measured.get_mut((round + turn) % places) else { continue };
                let discard = path.discard(measured.call, span, case.touch, context)?;
                to_map = to_map.or(discard.to_map);
                measured.seconds.push(discard.seconds);
                measured.calls = discard.calls;
                let (beside, before) =
                    discard.faults.iter().partition::<Vec<_>, _>(|f| f.beside != 0);
                measured.faults.add(beside.into_iter().copied())?;
                quiet.add(before.into_iter().copied())?;
                let done = round * places + turn + 1;
                context.progress.at(done as u64, (settings.rounds * places) as u64);
            }
        }
        if let Some(to_map) = to_map {
            findings.count("to-map", to_map, "faults", "of the second process, to map the range");
        }
        report(&measured, &quiet, span, case, &mut findings);
        Ok(findings)
    }
}

/// What was measured with one limit.
struct Measured {
    call: u64,
    seconds: Vec<f64>,
    calls: u64,
    faults: Faults,
}

impl Measured {
    fn new(call: u64) -> Result<Self> {
        Ok(Self { call, seconds: Vec::new(), calls: 0, faults: Faults::new()? })
    }
}

/// A size as the tables of this backing sort it.
fn label(call: u64, backing: Backing) -> String {
    match backing {
        Backing::Base => format!("{}-kib", call / KIB),
        Backing::Hugetlb => format!("{}-mib", call / MIB),
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn report(
    measured: &[Measured],
    quiet: &Faults,
    span: u64,
    case: &Mapped,
    findings: &mut Findings,
) {
    let (mut rates, mut p99, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for Measured { call, seconds, calls, faults } in measured {
        let size = label(*call, case.backing);
        let mut figure = |name: &str, value, unit, what| {
            findings.figure(&format!("{size}-{name}"), value, unit, what);
        };
        let seconds = median(seconds);
        let rate = span as f64 / GIB as f64 / seconds;
        let mib = *call as f64 / MIB as f64;
        rates.push((mib, rate));
        figure("rate", rate, "GiB/s", "discarded, from the report until it is returned");
        figure("call", seconds * 1e6 / *calls as f64, "µs", "of the report, a discarding call");
        if faults.count() == 0 {
            continue;
        }
        let (max, elapsed_max) = faults.max();
        figure("fault-p50", faults.quantile(0.5), "µs", "of a fault while a report is in flight");
        figure("fault-p99", faults.quantile(0.99), "µs", "the same");
        figure(
            "fault-slowest",
            faults.slowest(),
            "µs",
            "the slowest of a round, median of the rounds",
        );
        figure("fault-max", max, "µs", "the slowest of all");
        figure(
            "fault-max-elapsed",
            elapsed_max,
            "µs",
            "the same with the time in which it had no CPU",
        );
        figure("faults", faults.count() as f64, "", "while a report is in flight");
        let over = faults.over_a_millisecond() as f64;
        figure("faults-over-1-ms", over, "", "of these");
        let each = faults.asleep() / faults.count() as f64;
        figure("fault-asleep", each, "µs", "of a fault, mean: it waits for a lock or a call");
        p99.push((mib, faults.quantile(0.99)));
        slowest.push((mib, faults.slowest()));
    }
    findings.series("rate", ("MiB a call", "GiB/s"), "discarded", rates);
    if case.touch == Touch::None {
        return;
    }
    findings.series("fault-p99", ("MiB a call", "µs"), "of a fault", p99);
    findings.series("fault-slowest", ("MiB a call", "µs"), "of a round", slowest);
    if quiet.count() > 0 {
        let what = "of a fault while no report is in flight";
        findings.figure("quiet-p50", quiet.quantile(0.5), "µs", what);
        findings.figure("quiet-p99", quiet.quantile(0.99), "µs", "the same");
        findings.figure("quiet-slowest", quiet.slowest(), "µs", "the slowest of a round, median");
        let over = quiet.over_a_millisecond() as f64;
        findings.figure("quiet-over-1-ms", over, "", "faults while no report is in flight");
        findings.figure("quiet-faults", quiet.count() as f64, "", "of which");
    }
    let pairs = measured.iter().map(|measured| (measured.call, measured.faults.slowest()));
    if let Some(call) = largest_within(pairs) {
        let (value, unit) = match case.backing {
            Backing::Base => (call / KIB, "KiB"),
            Backing::Hugetlb => (call / MIB, "MiB"),
        };
        let what =
            "the largest call of which no smaller one makes a round's slowest fault take 1 ms";
        findings.count("under-1-ms", value, unit, what);
    }
    findings.note(
        "Latencies leave out the time in which the thread was ready and had no CPU (schedstat). Sleeping \
         is waiting for a lock of the kernel, or for a discarding call on the page to end.",
    );
}

/// The largest size up to which all stay within the bound. Sizes come in ascending order.
fn largest_within(sizes: impl Iterator<Item = (u64, f64)>) -> Option<u64> {
    // A size without faults says nothing.
    let known = sizes.filter(|(_, slowest)| slowest.is_finite());
    known.take_while(|(_, slowest)| *slowest <= BOUND_US).last().map(|(call, _)| call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Assignments, Length, Parameters};

    #[test]
    fn cases_of_small_pages_share_no_tables() {
        let settings = Settings::read(Length::Full, &Assignments::default()).unwrap();
        let names: Vec<String> =
            ReclaimPath.cases(&settings).iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 12 + 24);
        assert!(names.contains(&"4k-many-within".to_owned()));
        assert!(names.contains(&"hugetlb-shared-two-fresh".to_owned()));
        let mut once = names.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), names.len());
    }

    #[test]
    fn largest_call_within_the_bound_has_no_larger_below() {
        let sizes = |slowest: [f64; 4]| largest_within((1..).zip(slowest));
        assert_eq!(sizes([10.0, f64::NAN, 1000.0, 1001.0]), Some(3));
        assert_eq!(sizes([10.0, 2000.0, 30.0, 40.0]), Some(1));
        assert_eq!(sizes([2000.0, 1.0, 1.0, 1.0]), None);
    }

    #[test]
    fn sizes_are_labeled_in_one_unit_a_backing() {
        assert_eq!(label(256 * MIB, Backing::Base), "262144-kib");
        assert_eq!(label(GIB, Backing::Hugetlb), "1024-mib");
    }
}
