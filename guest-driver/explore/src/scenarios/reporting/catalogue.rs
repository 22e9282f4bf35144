// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configurations by name: what is known to be wrong, each in the scenario that brings it out,
//! and every way to report that is meant to work, in every scenario.

use core::time::Duration;

use crate::scenarios::reporting::actors::CpuPlan;
use crate::scenarios::reporting::host::Answers;
use crate::scenarios::reporting::scenario::{Patience, Scenario};
use crate::{Configuration, Expect, Invariant};
use guest_driver::page_alloc::{Geometry, KernelSemantics};
use guest_driver::reporting::{Config, Holding, OnBusy, OnTimeout, TrackerFlaw, TrackerKind};

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
        batch: if tracker == TrackerKind::ReportedFlag { 2 } else { scenario.batch },
        delay: Duration::ZERO,
        acknowledge_timeout: None,
        on_timeout: OnTimeout::Hold,
        watermark_guard: true,
        on_busy: OnBusy::Requeue,
        look_again: true,
        flaw: None,
    }
}

/// Every tracker with both ways to hold, in every scenario.
pub fn good() -> Vec<Configuration> {
    let mut all = Vec::new();
    for scenario in ALL {
        for &tracker in TrackerKind::ALL {
            for &holding in Holding::ALL {
                let mut semantics = KernelSemantics::V6_19;
                if holding == Holding::Pull {
                    semantics.putback_by_pageblock = scenario.contig || scenario.cma;
                }
                let mut scenario = scenario.clone();
                if tracker == TrackerKind::ReportedFlag {
                    // Mainline forgets what it has no memory to spare for, so there is enough.
                    (scenario.sections, scenario.movable) = match scenario.movable {
                        0 => (8, 0),
                        _ => (12, 4),
                    };
                }
                all.push(Configuration {
                    name: format!("{tracker}-{holding}-{}", scenario.name),
                    about: format!("{tracker}, {holding}"),
                    reporter: config(&scenario, tracker, holding),
                    scenario,
                    semantics,
                    nudge: tracker == TrackerKind::ReportedFlag,
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
    use Invariant::{
        EveryFreeBlockReported, ModelAssertionsHold, NoOomWhileWithheld, NoReportedPageInUse,
        OffliningEnds, OneIsolatorPerPageblock, QuietGuestRests,
    };
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
    let flawed = TrackerFlaw::ALL.iter().flat_map(|&flaw| {
        flaw.trackers().iter().map(move |&kind| {
            let (about, scenario, expect): (_, _, &[Invariant]) = match flaw {
                TrackerFlaw::MarkedBeforeFree => (
                    "marked before the block is on its free list",
                    &SMALL_CHURN,
                    &[EveryFreeBlockReported],
                ),
                TrackerFlaw::NoGracePeriod => (
                    "swapped without waiting for frees that still mark",
                    &SMALL_CHURN,
                    &[EveryFreeBlockReported],
                ),
                TrackerFlaw::ClearedAfterScan => (
                    "the section's bit cleared after the scan",
                    &SMALL_CHURN,
                    &[EveryFreeBlockReported],
                ),
                TrackerFlaw::SelfTrigger => {
                    ("isolation's own moves count as frees", &CHURN, &[QuietGuestRests])
                }
            };
            let reporter = Config { flaw: Some(flaw), ..tracker(kind) };
            wrong(
                &format!("{kind}-{flaw}"),
                &format!("{kind}, {about}"),
                scenario,
                reporter,
                expect,
            )
        })
    });
    let others = vec![
        wrong(
            "drop-on-busy",
            "zone-bitmap, forgets a block that another isolator holds",
            &ISOLATORS,
            Config { on_busy: OnBusy::Drop, ..tracker(TrackerKind::ZoneBitmap) },
            &[EveryFreeBlockReported],
        ),
        wrong(
            "trust-the-lockless-look",
            "zone-bitmap, forgets what does not look free without the lock, as the scheme was written down",
            &CHURN,
            Config { look_again: false, ..tracker(TrackerKind::ZoneBitmap) },
            &[EveryFreeBlockReported],
        ),
        wrong(
            "no-watermark-guard",
            "section-bit, holds as much as a batch takes",
            &PRESSURE,
            Config { watermark_guard: false, batch: PRESSURE.batch, ..default },
            &[NoOomWhileWithheld],
        ),
        wrong(
            "timeout-lets-go",
            "section-bit, lets go of what was not acknowledged in time",
            &FAULTY_HOST,
            Config { on_timeout: OnTimeout::LetGo, ..default },
            &[NoReportedPageInUse],
        ),
        Configuration {
            semantics: KernelSemantics::V4_16,
            ..wrong(
                "linux-4.16-double-isolation",
                "section-bit, where isolating what is isolated succeeds",
                &Scenario { geometry: NO_STRADDLING, offline: None, contig: true, ..ISOLATORS },
                default,
                &[OneIsolatorPerPageblock, NoReportedPageInUse, ModelAssertionsHold],
            )
        },
        Configuration {
            semantics: KernelSemantics::V5_8,
            ..wrong(
                "linux-5.8-pcp-race",
                "section-bit, where a freed page may reach a per-CPU list behind the drain",
                &Scenario {
                    geometry: NO_STRADDLING,
                    sections: 2,
                    plan: CpuPlan { steps: 4, orders: &[0], most: 3, ..CHURN.plan },
                    hot_add: false,
                    ..HOTPLUG
                },
                default,
                &[OffliningEnds],
            )
        },
    ];
    flawed.chain(others).collect()
}

/// What the model shows of mainline as it is, and nobody has seen in Linux.
pub fn candidates() -> Vec<Configuration> {
    use Invariant::{
        CountersMatchFrames, EveryFreeBlockReported, MigratetypeKept, ModelAssertionsHold,
    };
    let mainline = config(&CHURN, TrackerKind::ReportedFlag, Holding::Pull);
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
            "reported-flag-low-watermark",
            "reported-flag, pull: the pass stops for want of memory and no other one follows",
            Scenario { geometry: PRESSURE.geometry, sections: 3, ..PRESSURE },
            &[EveryFreeBlockReported],
        ),
        candidate(
            "reported-flag-free-into-isolated",
            "reported-flag, pull: freed while isolated, and the isolation ends without a free",
            Scenario {
                geometry: NO_STRADDLING,
                plan: CpuPlan { steps: 2, orders: &[2], most: 1, ..CHURN.plan },
                sections: 3,
                passes: 6,
                offline: None,
                contig: false,
                ..ISOLATORS
            },
            &[EveryFreeBlockReported],
        ),
        candidate(
            "reported-flag-split-behind-the-walk",
            "reported-flag, pull: a block not yet reported is split, its rest goes to a list already walked",
            Scenario { sections: 8, never_out_of_memory: false, ..PRESSURE },
            &[EveryFreeBlockReported],
        ),
        Configuration {
            reporter: config(&ISOLATORS, TrackerKind::SectionBit, Holding::Pull),
            ..candidate(
                "pull-isolated-half",
                "section-bit, pull: half of a held block is isolated, and it is put back whole",
                ISOLATORS,
                &[CountersMatchFrames, ModelAssertionsHold],
            )
        },
        Configuration {
            reporter: config(&ZONES, TrackerKind::SectionBit, Holding::Pull),
            keeps_types: true,
            ..candidate(
                "pull-makes-movable",
                "section-bit, pull: held blocks come back as movable pageblocks",
                ZONES,
                &[MigratetypeKept],
            )
        },
        Configuration {
            reporter: config(&ZONES, TrackerKind::SectionBit, Holding::Isolate),
            semantics: KernelSemantics { standalone_isolate_bit: false, ..KernelSemantics::V6_19 },
            keeps_types: true,
            ..candidate(
                "isolation-forgets-unmovable",
                "section-bit, isolate, before 6.17: isolation forgets the migratetype, so it becomes movable",
                ZONES,
                &[MigratetypeKept],
            )
        },
        Configuration {
            reporter: config(&CMA, TrackerKind::SectionBit, Holding::Isolate),
            semantics: KernelSemantics { standalone_isolate_bit: false, ..KernelSemantics::V6_19 },
            ..candidate(
                "isolation-forgets-the-reserve",
                "section-bit, isolate, before 6.17: the same for a block of the CMA reserve",
                CMA,
                &[MigratetypeKept],
            )
        },
    ]
}

/// Trackers in the smallest scenario: those that hold, and those whose mistake one pass can show. A
/// missing grace period takes two.
pub fn smallest() -> Vec<Configuration> {
    let smallest = |tracker: TrackerKind, flaw: Option<TrackerFlaw>| {
        let of = flaw.map_or(tracker.to_string(), |flaw| format!("{tracker}-{flaw}"));
        Configuration {
            name: format!("{of}-smallest"),
            about: format!("{of}, isolate"),
            scenario: SMALLEST,
            reporter: Config { flaw, ..config(&SMALLEST, tracker, Holding::Isolate) },
            semantics: KernelSemantics::V6_19,
            nudge: false,
            keeps_types: true,
            expect: match flaw {
                None => Expect::Good,
                Some(_) => Expect::Bad(&[Invariant::EveryFreeBlockReported]),
            },
        }
    };
    let marked = TrackerKind::ALL.iter().filter(|&&kind| kind != TrackerKind::ReportedFlag);
    let good = marked.map(|&kind| smallest(kind, None));
    let bad = [TrackerFlaw::MarkedBeforeFree, TrackerFlaw::ClearedAfterScan].into_iter();
    let bad = bad.flat_map(|flaw| flaw.trackers().iter().map(move |&kind| (kind, flaw)));
    good.chain(bad.map(|(kind, flaw)| smallest(kind, Some(flaw)))).collect()
}

/// All of them.
pub fn all() -> Vec<Configuration> {
    bad().into_iter().chain(candidates()).chain(good()).chain(smallest()).collect()
}

/// The one of that name.
pub fn by_name(name: &str) -> Option<Configuration> {
    all().into_iter().find(|configuration| configuration.name == name)
}
