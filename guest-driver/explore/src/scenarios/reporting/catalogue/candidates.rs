// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the model shows of mainline as it is, and of older kernels' isolation. No report of these from
//! real Linux is known.

use super::super::invariant::Holds;
use super::super::setting::{CpuPlan, NO_ZONE, Other, Scenario, Setting};
use super::parts::{Named, reporter, setting, wrong};
use super::scenarios::{CHURN, CMA, ISOLATORS, NO_STRADDLING, PRESSURE, ZONES};
use crate::Kind::Candidate;
use guest_driver::page_alloc::KernelSemantics;
use guest_driver::page_alloc::ZoneType::Movable;
use guest_driver::reporting::{Holding, TrackerKind};

/// `reported-flag`, pulling, as mainline does.
fn mainline(scenario: Scenario) -> Setting {
    let reporter = reporter(&CHURN, TrackerKind::ReportedFlag, Holding::Pull);
    Setting { keeps_types: false, ..setting(scenario, reporter) }
}

/// `section-bit` in a scenario.
fn section_bit(scenario: Scenario, holding: Holding) -> Setting {
    let reporter = reporter(&scenario, TrackerKind::SectionBit, holding);
    setting(scenario, reporter)
}

/// All of them.
pub(super) fn candidates() -> Vec<Named> {
    let forgetting = KernelSemantics { standalone_isolate_bit: false, ..KernelSemantics::V6_19 };
    vec![
        wrong(
            Candidate,
            "reported-flag-low-watermark",
            "reported-flag, pull: the pass stops for want of memory and no other one follows",
            mainline(Scenario { zones: [(Movable, 3), NO_ZONE], ..PRESSURE }),
            &[Holds::EveryFreeBlockReported],
        ),
        wrong(
            Candidate,
            "reported-flag-free-into-isolated",
            "reported-flag, pull: freed while isolated, and the isolation ends without a free",
            mainline(Scenario {
                geometry: NO_STRADDLING,
                plan: CpuPlan { steps: 2, orders: &[2], most: 1, keep: 0, ..CHURN.plan },
                zones: [(Movable, 3), NO_ZONE],
                passes: 6,
                others: &[Other::Isolator(1)],
                ..ISOLATORS
            }),
            &[Holds::EveryFreeBlockReported],
        ),
        wrong(
            Candidate,
            "reported-flag-split-behind-the-walk",
            "reported-flag, pull: a block not yet reported is split, and its rest goes to a list \
             already walked",
            mainline(Scenario { zones: [(Movable, 8), NO_ZONE], out_of_memory: None, ..PRESSURE }),
            &[Holds::EveryFreeBlockReported],
        ),
        wrong(
            Candidate,
            "pull-isolated-half",
            "section-bit, pull: half of a held block is isolated, and it is put back whole",
            Setting { keeps_types: false, ..section_bit(ISOLATORS, Holding::Pull) },
            &[
                Holds::CountersMatchFrames,
                Holds::NoReportedPageInUse,
                Holds::EveryFreeBlockReported,
                Holds::ModelAssertionsHold,
            ],
        ),
        wrong(
            Candidate,
            "pull-makes-movable",
            "section-bit, pull: held blocks come back as movable pageblocks",
            section_bit(ZONES, Holding::Pull),
            &[Holds::MigratetypeKept],
        ),
        wrong(
            Candidate,
            "isolation-forgets-unmovable",
            "section-bit, isolate, before 6.17: isolation forgets the migratetype, so it becomes \
             movable",
            Setting { semantics: forgetting, ..section_bit(ZONES, Holding::Isolate) },
            &[Holds::MigratetypeKept],
        ),
        wrong(
            Candidate,
            "isolation-forgets-the-reserve",
            "section-bit, isolate, before 6.17: the same for a block of the CMA reserve",
            Setting {
                semantics: forgetting,
                keeps_types: false,
                ..section_bit(CMA, Holding::Isolate)
            },
            &[Holds::MigratetypeKept],
        ),
    ]
}
