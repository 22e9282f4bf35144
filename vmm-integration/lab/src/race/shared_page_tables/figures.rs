// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rates, ratios and latencies.
//!
//! A rate is the median of the runs. A ratio is the median of the ratios of two loads that ran one behind
//! the other; where it matters, the least and the largest are there as well.

use guest_agent::hugetlb::{Arrangement, Done, Role, StormReport};

use super::loads::{ARRANGEMENTS, Load, Measured};
use crate::store::Findings;

#[allow(clippy::cast_precision_loss)] // figures for people
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

pub(super) fn name(arrangement: Arrangement) -> &'static str {
    match arrangement {
        Arrangement::Shared => "shared",
        Arrangement::Apart => "apart",
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2)?;
    let other = values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(*middle, *other))
}

/// So many a second, or per round, of a report.
type Count = fn(&StormReport) -> f64;

fn a_second(report: &StormReport, count: u64) -> f64 {
    float(count) * 1e9 / float(report.nanoseconds.max(1))
}

fn mappings(report: &StormReport) -> f64 {
    a_second(report, report.of(Role::Mapper).rounds)
}

fn faults_a_mapping(report: &StormReport) -> f64 {
    let mapper = report.of(Role::Mapper);
    float(mapper.faults) / float(mapper.rounds)
}

fn forks(report: &StormReport) -> f64 {
    a_second(report, report.of(Role::Forker).rounds)
}

fn writer_faults(report: &StormReport) -> f64 {
    a_second(report, report.of(Role::Writer).faults)
}

fn punches(report: &StormReport) -> f64 {
    a_second(report, report.of(Role::Puncher).rounds)
}

/// Rates: name, load, unit, meaning.
const RATES: [(&str, Load, Count, &str, &str); 7] = [
    (
        "mappings",
        Load::Mapping,
        mappings,
        "1/s",
        "times that the file was mapped, touched, unmapped",
    ),
    (
        "faults-a-mapping",
        Load::Mapping,
        faults_a_mapping,
        "",
        "faults until all pages were touched",
    ),
    ("forks", Load::Forking, forks, "1/s", "forks of processes that have the file mapped"),
    ("mappings-beside-forks", Load::Both, mappings, "1/s", "the same beside as many that fork"),
    ("forks-beside-mappings", Load::Both, forks, "1/s", "the same beside as many that map"),
    (
        "faults-beside-punches",
        Load::Punching,
        writer_faults,
        "1/s",
        "of writers, beside one that punches",
    ),
    ("punches-beside-faults", Load::Punching, punches, "1/s", "holes of one to eight pages"),
];

/// Adds the figures of all loads.
pub(super) fn add_figures(measured: &Measured, findings: &mut Findings) {
    for (what, load, count, unit, meaning) in RATES {
        let values = |arrangement| measured.of(load, arrangement).iter().map(count);
        for arrangement in ARRANGEMENTS {
            let mut values: Vec<f64> = values(arrangement).collect();
            let name = format!("{what}-{}", name(arrangement));
            findings.figure(&name, median(&mut values).unwrap_or(f64::NAN), unit, meaning);
        }
        let [shared, apart] = ARRANGEMENTS;
        let mut ratios: Vec<f64> = values(shared)
            .zip(values(apart))
            .map(|(shared, apart)| shared / apart)
            .filter(|ratio| ratio.is_finite())
            .collect();
        if let Some(median) = median(&mut ratios) {
            let what = format!("{what}-ratio");
            findings.figure(&what, median, "", "shared to apart");
            // Sorted by the median.
            let range = [("least", ratios.first()), ("most", ratios.last())];
            for (end, ratio) in range {
                let ratio = ratio.copied().unwrap_or(f64::NAN);
                findings.figure(&format!("{what}-{end}"), ratio, "", "of the runs");
            }
        }
    }
    for arrangement in ARRANGEMENTS {
        latencies(measured.of(Load::Punching, arrangement), name(arrangement), findings);
        checks(measured, arrangement, findings);
    }
    sharing(measured, findings);
}

fn all_of(reports: &[StormReport], role: Role) -> Done {
    let mut all = Done::default();
    reports.iter().for_each(|report| all.add(report.of(role)));
    all
}

fn latencies(reports: &[StormReport], name: &str, findings: &mut Findings) {
    let writers = all_of(reports, Role::Writer);
    for (end, per_mille) in [("p50", 500), ("p99", 990), ("max", 1000)] {
        let Some(ns) = writers.quantile_ns(per_mille) else { continue };
        let what = "time of an access that faults, beside one process that punches";
        findings.figure(&format!("fault-{end}-{name}"), float(ns) / 1e6, "ms", what);
    }
}

/// What was checked in storms and by the writers.
fn checks(measured: &Measured, arrangement: Arrangement, findings: &mut Findings) {
    let (mut checks, mut zeros, mut kept) = (0, 0, 0);
    for load in [Load::Punching, Load::Storm, Load::Traced] {
        for done in measured.of(load, arrangement).iter().flat_map(|report| report.done.values()) {
            checks += done.checks;
            zeros += done.zeros;
            kept += done.kept;
        }
    }
    let mut count = |what: &str, count, meaning: &str| {
        findings.count(&format!("{what}-{}", name(arrangement)), count, "pages", meaning);
    };
    count("checked", checks, "looked at by processes that know what they wrote");
    count("checked-zero", zeros, "of those, certainly punched since the last write, and zero");
    count("checked-kept", kept, "of those, certainly not punched since, and as written");
}

fn sharing(measured: &Measured, findings: &mut Findings) {
    let Some(sharing) = measured.sharing else { return };
    let mut count = |what: &str, count, meaning: &str| {
        findings.count(&format!("second-process-{what}"), count, "faults", meaning);
    };
    count("shares", sharing.second, "of a second process that touches all pages");
    count("after-protect", sharing.after_protect, "once it has made one page read-only");
    count("maps-again", sharing.mapped_again, "in a new mapping of the whole file");
    count("after-unmap", sharing.after_unmap, "of the other pages, once it has unmapped one");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn report(role: Role, rounds: u64, seconds: u64) -> StormReport {
        let done = Done { rounds, ..Done::default() };
        StormReport {
            nanoseconds: seconds * 1_000_000_000,
            done: BTreeMap::from([(role, done)]),
            ..StormReport::default()
        }
    }

    #[test]
    fn ratio_is_the_median_of_pairs() {
        let mut measured = Measured::default();
        let forking = |arrangement, forks: [u64; 3]| {
            let reports = forks.map(|forks| report(Role::Forker, forks, 2));
            ((Load::Forking, arrangement), reports.to_vec())
        };
        measured.reports.extend([
            forking(Arrangement::Shared, [10, 40, 30]),
            forking(Arrangement::Apart, [20, 20, 20]),
        ]);
        let mut findings = Findings::default();
        add_figures(&measured, &mut findings);
        let value = |name: &str| findings.figures.get(name).map(|figure| figure.value);
        assert_eq!(value("forks-shared"), Some(15.0));
        assert_eq!(value("forks-apart"), Some(10.0));
        assert_eq!(value("forks-ratio"), Some(1.5));
        assert_eq!((value("forks-ratio-least"), value("forks-ratio-most")), (Some(0.5), Some(2.0)));
        assert_eq!(value("mappings-ratio"), None);
    }

    #[test]
    fn median_of_an_even_number_is_between() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0]), Some(3.0));
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }
}
