// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configurations by name: what is known to be wrong, each in the scenario that brings it out,
//! and every way to report that is meant to work, in every scenario.

use core::time::Duration;

use crate::actors::CpuPlan;
use crate::host::Answers;
use crate::scenario::{Patience, Scenario};
use crate::{Configuration, Expect, Invariant};
use guest_driver::page_alloc::{Geometry, KernelSemantics};
use guest_driver::reporting::{Config, Holding, OnBusy, OnTimeout, TrackerKind};

/// No buddy is larger than a pageblock. Kernels before 5.19 isolate such a buddy wrongly, and that
/// is not what is looked for.
const NO_STRADDLING: Geometry = Geometry { max_order: 2, ..Geometry::TINY };

/// Two CPUs and the reporter.
const CHURN: Scenario = Scenario {
    name: "churn",
    geometry: Geometry::TINY,
    sections: 4,
    movable: 0,
    cma: false,
    cpus: 2,
    plan: CpuPlan { steps: 6, orders: &[0, 1, 2], most: 3, unmovable: false },
    passes: 3,
    offline: None,
    contig: false,
    isolate: false,
    hot_add: false,
    batch: 2,
    answers: Answers::Always,
    never_out_of_memory: false,
};

/// The same with less of everything: what a tracker does wrong by itself shows sooner.
const SMALL_CHURN: Scenario = Scenario {
    name: "small-churn",
    geometry: NO_STRADDLING,
    sections: 2,
    cpus: 4,
    plan: CpuPlan { steps: 2, orders: &[2], most: 1, ..CHURN.plan },
    passes: 2,
    ..CHURN
};

/// One CPU, and everybody else who isolates: one who lets go again, one who allocates the second
/// half of a free block, and an offliner who soon gives up.
const ISOLATORS: Scenario = Scenario {
    name: "isolators",
    cpus: 1,
    offline: Some(Patience::Short),
    contig: true,
    isolate: true,
    ..CHURN
};

/// Memory comes and goes.
const HOTPLUG: Scenario = Scenario {
    name: "hotplug",
    plan: CpuPlan { steps: 4, ..CHURN.plan },
    offline: Some(Patience::Endless),
    hot_add: true,
    ..CHURN
};

/// One CPU needs one page, of so little memory that a batch could hold all of it. It takes no more
/// while a report is under way than lie between the low and the min watermark: that much a guard
/// can promise.
const PRESSURE: Scenario = Scenario {
    name: "pressure",
    geometry: Geometry { min_watermark: (8, 8), ..Geometry::TINY },
    sections: 6,
    cpus: 1,
    plan: CpuPlan { steps: 8, orders: &[0], most: 1, ..CHURN.plan },
    never_out_of_memory: true,
    batch: 32,
    ..CHURN
};

/// One CPU frees one block while the reporter is at it: small enough to take every schedule.
pub const SMALLEST: Scenario = Scenario {
    name: "smallest",
    geometry: NO_STRADDLING,
    sections: 1,
    cpus: 1,
    plan: CpuPlan { steps: 2, orders: &[2], most: 1, ..CHURN.plan },
    passes: 1,
    ..CHURN
};

/// As churn, and some reports are not taken, and some acknowledged when nobody waits any more.
const FAULTY_HOST: Scenario =
    Scenario { name: "faulty-host", answers: Answers::OneInThree, passes: 6, ..CHURN };

/// Two zones, one of which has pageblocks of unmovable pages. It has to have some memory to spare
/// for its watermark.
const ZONES: Scenario = Scenario {
    name: "zones",
    sections: 8,
    movable: 2,
    plan: CpuPlan { unmovable: true, ..CHURN.plan },
    ..CHURN
};

/// A pageblock is a reserve, of which somebody allocates; movable pages may live in it meanwhile.
const CMA: Scenario = Scenario { name: "cma", cma: true, ..CHURN };

/// Those that every good configuration has to stand.
const ALL: [Scenario; 8] =
    [SMALL_CHURN, CHURN, ISOLATORS, HOTPLUG, PRESSURE, FAULTY_HOST, ZONES, CMA];

fn config(scenario: &Scenario, tracker: TrackerKind, holding: Holding) -> Config {
    Config {
        tracker,
        holding,
        granule_order: 2,
        // Mainline looks at no zone that has not a whole batch to spare.
        batch: if tracker == TrackerKind::PageReported { 2 } else { scenario.batch },
        delay: Duration::ZERO,
        acknowledge_timeout: None,
        on_timeout: OnTimeout::Hold,
        watermark_guard: true,
        on_busy: OnBusy::Requeue,
        look_again: true,
    }
}

fn letter(tracker: TrackerKind) -> &'static str {
    match tracker {
        TrackerKind::ZoneBitmap => "a",
        TrackerKind::ZoneRcu => "b",
        TrackerKind::SectionBitmap => "c",
        TrackerKind::SectionBit => "d",
        _ => "e",
    }
}

/// Every tracker with both ways to hold, in every scenario.
pub fn good() -> Vec<Configuration> {
    let mut all = Vec::new();
    for scenario in ALL {
        for tracker in TrackerKind::GOOD {
            for holding in [Holding::Isolate, Holding::Pull] {
                let how = match holding {
                    Holding::Isolate => "isolate",
                    Holding::Pull => "pull",
                };
                let mut semantics = KernelSemantics::V6_19;
                if holding == Holding::Pull {
                    semantics.putback_by_pageblock = scenario.contig || scenario.cma;
                }
                let mut scenario = scenario.clone();
                if tracker == TrackerKind::PageReported {
                    // Mainline forgets what it has no memory to spare for, so there is enough.
                    (scenario.sections, scenario.movable) = match scenario.movable {
                        0 => (8, 0),
                        _ => (12, 4),
                    };
                }
                all.push(Configuration {
                    name: format!("{}-{how}-{}", letter(tracker), scenario.name),
                    about: format!("{}, {how}", tracker.name()),
                    reporter: config(&scenario, tracker, holding),
                    scenario,
                    semantics,
                    nudge: tracker == TrackerKind::PageReported,
                    keeps_types: holding == Holding::Isolate,
                    expect: Expect::Good,
                });
            }
        }
    }
    all
}

/// What is known to be wrong.
pub fn bad() -> Vec<Configuration> {
    use Invariant::{Assertion, K1, K2, K4, K6, K7, K9};
    let wrong = |name: &str, about: &str, scenario: &Scenario, reporter, expect| Configuration {
        name: name.to_owned(),
        about: about.to_owned(),
        scenario: scenario.clone(),
        reporter,
        semantics: KernelSemantics::V6_19,
        nudge: false,
        keeps_types: true,
        expect: Expect::Bad(expect),
    };
    let tracker = |kind| config(&CHURN, kind, Holding::Isolate);
    let default = tracker(TrackerKind::SectionBit);
    vec![
        wrong(
            "a-unordered",
            "A, marked before the block is on its free list",
            &SMALL_CHURN,
            tracker(TrackerKind::ZoneBitmapUnordered),
            &[K2],
        ),
        wrong(
            "b-no-grace-period",
            "B, swapped without waiting for who still marks",
            &SMALL_CHURN,
            tracker(TrackerKind::ZoneRcuNoGrace),
            &[K2],
        ),
        wrong(
            "c-meta-cleared-after",
            "C, the section's meta bit cleared after the scan",
            &SMALL_CHURN,
            tracker(TrackerKind::SectionBitmapClearAfter),
            &[K2],
        ),
        wrong(
            "d-cleared-after",
            "D, the section's bit cleared after the scan",
            &SMALL_CHURN,
            tracker(TrackerKind::SectionBitClearAfter),
            &[K2],
        ),
        wrong(
            "d-self-trigger",
            "D, told of isolation's own moves as of frees",
            &CHURN,
            tracker(TrackerKind::SectionBitSelfTrigger),
            &[K9],
        ),
        wrong(
            "drop-on-busy",
            "A, forgets what somebody else isolates",
            &ISOLATORS,
            Config { on_busy: OnBusy::Drop, ..tracker(TrackerKind::ZoneBitmap) },
            &[K2],
        ),
        wrong(
            "trust-the-lockless-look",
            "A, forgets what does not look free without the lock (2.9 as written)",
            &CHURN,
            Config { look_again: false, ..tracker(TrackerKind::ZoneBitmap) },
            &[K2],
        ),
        wrong(
            "no-watermark-guard",
            "D, holds as much as a batch takes",
            &PRESSURE,
            Config { watermark_guard: false, batch: PRESSURE.batch, ..default },
            &[K7],
        ),
        wrong(
            "timeout-lets-go",
            "D, lets go of what was not acknowledged in time",
            &FAULTY_HOST,
            Config { on_timeout: OnTimeout::LetGo, ..default },
            &[K1],
        ),
        Configuration {
            semantics: KernelSemantics::V4_16,
            ..wrong(
                "linux-4.16-double-isolation",
                "D, where isolating what is isolated succeeds",
                &Scenario { geometry: NO_STRADDLING, offline: None, contig: true, ..ISOLATORS },
                default,
                &[K4, K1, Assertion],
            )
        },
        Configuration {
            semantics: KernelSemantics::V5_8,
            ..wrong(
                "linux-5.8-pcp-race",
                "D, where a freed page may reach a per-CPU list behind the drain",
                &Scenario {
                    geometry: NO_STRADDLING,
                    sections: 2,
                    plan: CpuPlan { steps: 4, orders: &[0], most: 3, ..CHURN.plan },
                    hot_add: false,
                    ..HOTPLUG
                },
                default,
                &[K6],
            )
        },
    ]
}

/// What the model shows of mainline as it is, and nobody has seen in Linux.
pub fn candidates() -> Vec<Configuration> {
    use Invariant::{Assertion, K2, K3, K5};
    let mainline = config(&CHURN, TrackerKind::PageReported, Holding::Pull);
    let candidate = |name: &str, about: &str, scenario: Scenario, expect| Configuration {
        name: name.to_owned(),
        about: about.to_owned(),
        scenario,
        reporter: mainline,
        semantics: KernelSemantics::V6_19,
        nudge: false,
        keeps_types: false,
        expect: Expect::Candidate(expect),
    };
    vec![
        candidate(
            "e-low-watermark",
            "E, pull: the pass stops for want of memory and nobody asks for another (4.2 a)",
            Scenario { geometry: PRESSURE.geometry, sections: 3, ..PRESSURE },
            &[K2],
        ),
        candidate(
            "e-free-into-isolated",
            "E, pull: freed while isolated, and the isolation ends without a free (4.2 c)",
            Scenario {
                geometry: NO_STRADDLING,
                plan: CpuPlan { steps: 2, orders: &[2], most: 1, ..CHURN.plan },
                sections: 3,
                passes: 6,
                offline: None,
                contig: false,
                ..ISOLATORS
            },
            &[K2],
        ),
        candidate(
            "e-split-behind-the-walk",
            "E, pull: a block not yet reported is split, its rest goes to a list already walked",
            Scenario { sections: 8, never_out_of_memory: false, ..PRESSURE },
            &[K2],
        ),
        Configuration {
            reporter: config(&ISOLATORS, TrackerKind::SectionBit, Holding::Pull),
            ..candidate(
                "pull-isolated-half",
                "D, pull: half of a held block is isolated, and it is put back whole (4.2 e)",
                ISOLATORS,
                &[K3, Assertion],
            )
        },
        Configuration {
            reporter: config(&ZONES, TrackerKind::SectionBit, Holding::Pull),
            keeps_types: true,
            ..candidate(
                "pull-makes-movable",
                "D, pull: what was held comes back as movable pageblocks (4.2 h)",
                ZONES,
                &[K5],
            )
        },
        Configuration {
            reporter: config(&ZONES, TrackerKind::SectionBit, Holding::Isolate),
            semantics: KernelSemantics { standalone_isolate_bit: false, ..KernelSemantics::V6_19 },
            keeps_types: true,
            ..candidate(
                "isolation-forgets-unmovable",
                "D, isolate, before 6.17: isolation forgets the migratetype, so it becomes movable",
                ZONES,
                &[K5],
            )
        },
        Configuration {
            reporter: config(&CMA, TrackerKind::SectionBit, Holding::Isolate),
            semantics: KernelSemantics { standalone_isolate_bit: false, ..KernelSemantics::V6_19 },
            ..candidate(
                "isolation-forgets-the-reserve",
                "D, isolate, before 6.17: the same for a block of the CMA reserve",
                CMA,
                &[K5],
            )
        },
    ]
}

/// Trackers in the smallest scenario: those that hold, and those whose mistake one pass can show. B's
/// without a grace period takes two.
pub fn smallest() -> Vec<Configuration> {
    let kinds = [
        ("a", TrackerKind::ZoneBitmap, Expect::Good),
        ("b", TrackerKind::ZoneRcu, Expect::Good),
        ("c", TrackerKind::SectionBitmap, Expect::Good),
        ("d", TrackerKind::SectionBit, Expect::Good),
        ("a-unordered", TrackerKind::ZoneBitmapUnordered, Expect::Bad(&[Invariant::K2])),
        ("c-cleared-after", TrackerKind::SectionBitmapClearAfter, Expect::Bad(&[Invariant::K2])),
        ("d-cleared-after", TrackerKind::SectionBitClearAfter, Expect::Bad(&[Invariant::K2])),
    ];
    kinds
        .into_iter()
        .map(|(name, tracker, expect)| Configuration {
            name: format!("{name}-smallest"),
            about: format!("{}, isolate", tracker.name()),
            scenario: SMALLEST,
            reporter: config(&SMALLEST, tracker, Holding::Isolate),
            semantics: KernelSemantics::V6_19,
            nudge: false,
            keeps_types: true,
            expect,
        })
        .collect()
}

/// All of them.
pub fn all() -> Vec<Configuration> {
    bad().into_iter().chain(candidates()).chain(good()).chain(smallest()).collect()
}

/// The one of that name.
pub fn by_name(name: &str) -> Option<Configuration> {
    all().into_iter().find(|configuration| configuration.name == name)
}
