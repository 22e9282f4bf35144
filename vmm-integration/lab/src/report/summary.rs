// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The head of the page: experiments, verdicts, failures and machines.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::text::{again, badge, class, slug, table, verdict_name};
use crate::store::{CaseRecord, Failure, Kept, VerdictKind};

/// Verdicts in the order of their columns.
const KINDS: [VerdictKind; 6] = [
    VerdictKind::Lost,
    VerdictKind::Survived,
    VerdictKind::AsDocumented,
    VerdictKind::Shown,
    VerdictKind::NotShown,
    VerdictKind::NotTestable,
];
/// The column of cases that failed.
const FAILED: &str = "failed";

/// The section.
pub(super) fn section(kept: &Kept, experiments: &[&str]) -> Markup {
    let Kept { records, failures, unreadable } = kept;
    let lost = records.iter().filter(|record| kind(record) == Some(VerdictKind::Lost));
    html! {
        section id="summary" aria-labelledby="summary-h" {
            h2 id="summary-h" { "Summary" }
            p.lead {
                (plural(records.len(), "case")) " of " (plural(experiments.len(), "experiment")) ". "
                (verdicts(kept)) "."
            }
            @for failure in failures { (self::failure(failure)) }
            @for record in lost {
                div.bad {
                    p {
                        (badge(verdict_name(VerdictKind::Lost))) " "
                        a href={ "#" (slug(&format!("{}-{}", record.experiment, record.case))) } {
                            (record.experiment) " " (record.case)
                        }
                        ": " (record.verdict.as_ref().map_or("", |verdict| &verdict.text))
                    }
                    (again(&record.command))
                }
            }
            @if !unreadable.is_empty() {
                div.bad {
                    p { "Files without a readable record:" }
                    ul { @for why in unreadable { li { (format!("{why:#}")) } } }
                }
            }
            (counts(kept, experiments))
            (machines(records))
            h3 { "How to read this page" }
            ul {
                li {
                    "A command stands below each table, chart, map and verdict and repeats it. The notes say                     which results the same seed reproduces."
                }
                li {
                    "The unit follows the name of a figure; " i { "count" } " is a number of things, " i { "ratio" }
                    " a quotient. \u{2013} means that the case has no such figure."
                }
                li {
                    "K, M, G and T after a size mean KiB, MiB, GiB and TiB. At the axis of a chart k, M and G mean                     thousands, millions and billions of its unit."
                }
            }
        }
    }
}

/// A failed case.
pub(super) fn failure(failure: &Failure) -> Markup {
    html! {
        div.bad {
            p {
                (badge(FAILED)) " " a href={ "#" (slug(&failure.experiment)) } { (failure.experiment) }
                " " (failure.case) ", " (failure.machine.date) ": " (failure.error)
            }
            (again(&failure.command))
        }
    }
}

fn kind(record: &CaseRecord) -> Option<VerdictKind> {
    record.verdict.as_ref().map(|verdict| verdict.kind)
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The number of cases with each verdict, as a phrase.
fn verdicts(kept: &Kept) -> String {
    let of = |wanted: VerdictKind| kept.records.iter().filter(|r| kind(r) == Some(wanted)).count();
    let counts = KINDS.into_iter().map(|kind| (verdict_name(kind), of(kind)));
    let all = [(FAILED, kept.failures.len())].into_iter().chain(counts);
    let parts: Vec<String> = all
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    if parts.is_empty() { "None failed".to_owned() } else { parts.join(", ") }
}

/// The number of cases of each experiment by verdict.
fn counts(kept: &Kept, experiments: &[&str]) -> Markup {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for record in &kept.records {
        let column = kind(record).map_or("measured", verdict_name);
        *counts.entry((&record.experiment, column)).or_default() += 1;
    }
    for failure in &kept.failures {
        *counts.entry((&failure.experiment, FAILED)).or_default() += 1;
    }
    let columns: Vec<&str> = ["measured", FAILED]
        .into_iter()
        .chain(KINDS.map(verdict_name))
        .filter(|column| counts.keys().any(|(_, counted)| counted == column))
        .collect();
    let body = html! {
        @for experiment in experiments {
            tr role="row" {
                th role="rowheader" scope="row" { a href={ "#" (slug(experiment)) } { (experiment) } }
                @for column in &columns {
                    @let count = counts.get(&(*experiment, *column)).copied().unwrap_or(0);
                    td role="cell" class=[(count == 0).then_some("none")] data-case=(column) { (count) }
                }
            }
        }
    };
    let heads: Vec<&str> = ["experiment"].into_iter().chain(columns.iter().copied()).collect();
    let class = format!("counts {}", class(columns.len()));
    html! { div.holder { (table(&class, "Cases by verdict", &heads, body)) } }
}

/// The machines, with the commits and dates of their runs.
fn machines(records: &[CaseRecord]) -> Markup {
    let mut all: BTreeMap<String, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for CaseRecord { machine, .. } in records {
        let text = format!(
            "{}, {}, {} GiB of memory, Linux {}",
            machine.cpu,
            plural(machine.cores, "CPU"),
            machine.memory_bytes >> 30,
            machine.kernel,
        );
        let commits = all.entry(text).or_default();
        commits.entry(&machine.commit).or_default().insert(&machine.date);
    }
    let minute = |date: Option<&&str>| {
        let date = date.copied().unwrap_or_default();
        date.get(..16).unwrap_or(date).replace('T', " ")
    };
    html! {
        @if !all.is_empty() { h3 { "Machines and dates" } }
        @for (machine, commits) in all {
            p { (machine) }
            ul {
                @for (commit, dates) in commits {
                    li {
                        "commit " (if commit.is_empty() { "unknown" } else { commit }) ", "
                        (minute(dates.first())) " to " (minute(dates.last())) " UTC"
                    }
                }
            }
        }
    }
}
