// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known to be wrong.

use super::super::invariant::Holds;
use super::super::setting::{CpuPlan, NO_ZONE, Other, Patience, Scenario, Setting};
use super::parts::{Named, reporter, setting, wrong};
use super::scenarios::{
    CHURN, FAULTY_HOST, HOT_ADD, HOTPLUG, ISOLATORS, NO_STRADDLING, OFFLINE, PRESSURE,
    SHARED_SECTION, SMALL_CHURN,
};
use crate::Kind::KnownBad;
use guest_driver::page_alloc::KernelSemantics;
use guest_driver::page_alloc::ZoneType::Movable;
use guest_driver::reporting::{
    Config, Holding, HotplugLock, OnBusy, OnTimeout, TrackerFlaw, TrackerKind, WatermarkGuard,
};

fn isolating(tracker: TrackerKind) -> Config {
    reporter(&CHURN, tracker, Holding::Isolate)
}

/// Every mistake that a tracker can make.
fn flawed(flaw: TrackerFlaw, tracker: TrackerKind) -> Named {
    let (about, scenario, breaks): (_, _, &[Holds]) = match flaw {
        TrackerFlaw::MarkedBeforeFree => (
            "marked before the block is on its free list",
            SMALL_CHURN,
            &[Holds::EveryFreeBlockReported],
        ),
        TrackerFlaw::NoGracePeriod => (
            "swapped without waiting for frees that still mark",
            SMALL_CHURN,
            &[Holds::EveryFreeBlockReported],
        ),
        TrackerFlaw::ClearedAfterScan => (
            "the section's bit cleared after the scan",
            SMALL_CHURN,
            &[Holds::EveryFreeBlockReported],
        ),
        TrackerFlaw::SelfTrigger => {
            ("isolation's own moves count as frees", CHURN, &[Holds::QuietGuestRests])
        }
        TrackerFlaw::OneZoneLock => (
            "the lock of only one of a section's zones passed",
            // A pageblock in each zone, which the watermarks would not let the reporter hold.
            Scenario { geometry: NO_STRADDLING, cma: false, ..SHARED_SECTION },
            &[Holds::EveryFreeBlockReported],
        ),
    };
    let watermark_guard = match flaw {
        TrackerFlaw::OneZoneLock => WatermarkGuard::None,
        _ => WatermarkGuard::Zone,
    };
    let reporter = Config { flaw: Some(flaw), watermark_guard, ..isolating(tracker) };
    let setting = setting(scenario, reporter);
    let (name, about) = (format!("{tracker}-{flaw}"), format!("{tracker}, {about}"));
    wrong(KnownBad, &name, &about, setting, breaks)
}

/// All of them.
pub(super) fn known_bad() -> Vec<Named> {
    let (zone_bitmap, section_bit) =
        (isolating(TrackerKind::ZoneBitmap), isolating(TrackerKind::SectionBit));
    let flawed = TrackerFlaw::ALL
        .iter()
        .flat_map(|&flaw| flaw.trackers().iter().map(move |&tracker| flawed(flaw, tracker)));
    let others = [
        wrong(
            KnownBad,
            "drop-on-busy",
            "zone-bitmap, forgets a block that another isolator holds",
            setting(ISOLATORS, Config { on_busy: OnBusy::Drop, ..zone_bitmap }),
            &[Holds::EveryFreeBlockReported],
        ),
        wrong(
            KnownBad,
            "trust-the-lockless-look",
            "zone-bitmap, forgets what does not look free without the lock, as the scheme was \
             written down",
            setting(CHURN, Config { look_again: false, ..zone_bitmap }),
            &[Holds::EveryFreeBlockReported],
        ),
        wrong(
            KnownBad,
            "no-watermark-guard",
            "section-bit, holds as much as a batch takes",
            setting(
                PRESSURE,
                Config {
                    watermark_guard: WatermarkGuard::None,
                    batch: PRESSURE.batch,
                    ..section_bit
                },
            ),
            &[Holds::NoOomWhileWithheld],
        ),
        wrong(
            KnownBad,
            "pull-under-hotplug-lock",
            "section-bit, pull, waits for the hotplug lock while it holds pages that an offliner waits \
             for",
            setting(
                OFFLINE,
                Config {
                    hotplug_lock: HotplugLock::Waits,
                    ..reporter(&OFFLINE, TrackerKind::SectionBit, Holding::Pull)
                },
            ),
            &[Holds::OffliningEnds],
        ),
        wrong(
            KnownBad,
            "growing-under-hotplug-lock",
            "section-bitmap, waits for the hotplug lock during a pass, for the end of which an onliner \
             waits to make room",
            setting(
                HOT_ADD,
                Config {
                    hotplug_lock: HotplugLock::Waits,
                    grows: true,
                    ..reporter(&HOT_ADD, TrackerKind::SectionBitmap, Holding::Isolate)
                },
            ),
            &[Holds::EveryWaitEnds],
        ),
        wrong(
            KnownBad,
            "timeout-lets-go",
            "section-bit, releases what was not acknowledged in time",
            setting(FAULTY_HOST, Config { on_timeout: OnTimeout::LetGo, ..section_bit }),
            &[Holds::NoReportedPageInUse],
        ),
        wrong(
            KnownBad,
            "linux-4.16-double-isolation",
            "section-bit, where isolating what is isolated succeeds",
            Setting {
                semantics: KernelSemantics::V4_16,
                ..setting(
                    Scenario {
                        geometry: NO_STRADDLING,
                        others: &[Other::Contig(1), Other::Isolator(1)],
                        ..ISOLATORS
                    },
                    section_bit,
                )
            },
            &[
                Holds::OneIsolatorPerPageblock,
                Holds::NoReportedPageInUse,
                Holds::ModelAssertionsHold,
            ],
        ),
        wrong(
            KnownBad,
            "linux-5.8-pcp-race",
            "section-bit, where a freed page may reach a per-CPU list behind the drain",
            Setting {
                semantics: KernelSemantics::V5_8,
                ..setting(
                    Scenario {
                        geometry: NO_STRADDLING,
                        zones: [(Movable, 2), NO_ZONE],
                        plan: CpuPlan { steps: 4, orders: &[0], most: 3, ..CHURN.plan },
                        others: &[Other::Offliner(Patience::Endless)],
                        ..HOTPLUG
                    },
                    section_bit,
                )
            },
            &[Holds::OffliningEnds],
        ),
    ];
    flawed.chain(others).collect()
}
