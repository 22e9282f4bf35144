// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Trackers in the smallest scenario: those that are meant to work, and those whose mistake one pass
//! can show. A missing grace period takes two.

use super::super::invariant::Holds;
use super::parts::{Named, reporter, setting};
use super::scenarios::SMALLEST;
use crate::Kind;
use guest_driver::reporting::{Config, Holding, TrackerFlaw, TrackerKind};

/// See the module.
pub(super) fn smallest() -> Vec<Named> {
    let marked = TrackerKind::ALL.iter().filter(|&&kind| kind != TrackerKind::ReportedFlag);
    let good = marked.map(|&kind| one(kind, None));
    let bad = [TrackerFlaw::MarkedBeforeFree, TrackerFlaw::ClearedAfterScan].into_iter();
    let bad = bad.flat_map(|flaw| flaw.trackers().iter().map(move |&kind| (kind, flaw)));
    good.chain(bad.map(|(kind, flaw)| one(kind, Some(flaw)))).collect()
}

fn one(tracker: TrackerKind, flaw: Option<TrackerFlaw>) -> Named {
    let of = flaw.map_or(tracker.to_string(), |flaw| format!("{tracker}-{flaw}"));
    let reporter = Config { flaw, ..reporter(&SMALLEST, tracker, Holding::Isolate) };
    let (kind, breaks): (_, &[Holds]) = match flaw {
        None => (Kind::Good, &[]),
        Some(_) => (Kind::KnownBad, &[Holds::EveryFreeBlockReported]),
    };
    Named {
        name: format!("{of}-smallest"),
        about: format!("{of}, isolate"),
        scenario: SMALLEST.name,
        setting: setting(SMALLEST, reporter),
        kind,
        breaks,
        small: true,
    }
}
