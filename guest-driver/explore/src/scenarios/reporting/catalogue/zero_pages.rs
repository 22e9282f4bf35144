// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages that are known to be zero: what makes a guest hand out old data.

use super::super::invariant::Holds;
use super::super::setting::Setting;
use super::parts::{Named, reporter, setting, wrong};
use super::scenarios::ZERO_PAGES;
use crate::Kind;
use guest_driver::page_alloc::KernelSemantics;
use guest_driver::reporting::{Config, Holding, TrackerKind, ZeroReports};

/// What is known to be wrong.
pub(super) fn known_bad() -> Vec<Named> {
    let of = |zero_reports| {
        let reporter = reporter(&ZERO_PAGES, TrackerKind::SectionBit, Holding::Isolate);
        setting(ZERO_PAGES, Config { zero_reports, ..reporter })
    };
    let semantics = KernelSemantics { zero_outlives_use: true, ..KernelSemantics::V6_19 };
    let outlives = Setting { semantics, ..of(ZeroReports::AsTold) };
    [
        (
            "trust-all-reports",
            "section-bit, takes every report for zero that is acknowledged",
            of(ZeroReports::All),
        ),
        (
            "zero-outlives-use",
            "section-bit, where pages count as zero after they were in use",
            outlives,
        ),
    ]
    .map(|(name, about, setting)| {
        wrong(Kind::KnownBad, name, about, setting, &[Holds::ZeroedPageHoldsZero])
    })
    .into()
}
