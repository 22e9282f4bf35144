// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is meant to work.

use super::super::setting::{NO_ZONE, Other, Scenario};
use super::parts::{Named, reporter, setting};
use super::scenarios::{ALL, HOTPLUG, LOW_ZONE, OFFLINE};
use crate::Kind;
use guest_driver::reporting::{Holding, HotplugLock, TrackerKind};

/// Every tracker with both ways to hold, in every scenario that is for it.
pub(super) fn good() -> Vec<Named> {
    let mut all = Vec::new();
    for scenario in ALL {
        for &tracker in TrackerKind::ALL {
            for &holding in Holding::ALL {
                if is_for(&scenario, tracker, holding) {
                    all.push(one(scenario.clone(), tracker, holding));
                }
            }
        }
    }
    all.push(under_hotplug_lock());
    for tracker in [TrackerKind::SectionBit, TrackerKind::SectionBitmap] {
        all.extend(Holding::ALL.iter().map(|&holding| growing(tracker, holding)));
    }
    all
}

/// As the module for Linux: a pass waits for no holder of the hotplug lock.
fn growing(tracker: TrackerKind, holding: Holding) -> Named {
    let mut named = one(HOTPLUG, tracker, holding);
    named.setting.reporter.hotplug_lock = HotplugLock::Tries;
    named.setting.reporter.grows = true;
    named.name = format!("{tracker}-{holding}-growing");
    named.about = format!("{tracker}, {holding}, grows, and tries the hotplug lock");
    named
}

/// An offliner is told that the pages which the reporter isolates are busy, and lets the lock go.
fn under_hotplug_lock() -> Named {
    let mut named = one(OFFLINE, TrackerKind::SectionBit, Holding::Isolate);
    named.setting.reporter.hotplug_lock = HotplugLock::Waits;
    named.name = "section-bit-isolate-under-hotplug-lock".to_owned();
    named.about = "section-bit, isolate, looks with the hotplug lock held".to_owned();
    named
}

fn is_for(scenario: &Scenario, tracker: TrackerKind, holding: Holding) -> bool {
    // An isolation is of whole pageblocks.
    let isolates = scenario.granule_order >= scenario.geometry.pageblock_order;
    // Mainline forgets what it has no memory to spare for (`reported-flag-low-watermark`).
    let spares = scenario.name != LOW_ZONE.name || tracker != TrackerKind::ReportedFlag;
    (isolates || holding == Holding::Pull) && spares
}

fn one(mut scenario: Scenario, tracker: TrackerKind, holding: Holding) -> Named {
    if tracker == TrackerKind::ReportedFlag {
        // It looks at no zone that has not a batch to spare, so there is enough.
        scenario.zones = match scenario.zones {
            zones if scenario.shared => {
                scenario.geometry.section_order = 6;
                zones
            }
            [(kind, _), NO_ZONE] => [(kind, 8), NO_ZONE],
            zones => {
                let more = if scenario.has(|other| other == Other::Remover) { 4 } else { 2 };
                zones.map(|(kind, sections)| (kind, sections + more))
            }
        };
    }
    let reporter = reporter(&scenario, tracker, holding);
    let mut setting = setting(scenario, reporter);
    setting.nudge = tracker == TrackerKind::ReportedFlag;
    setting.keeps_types = holding == Holding::Isolate;
    if holding == Holding::Pull {
        setting.semantics.putback_by_pageblock = halves_blocks(&setting.scenario);
    }
    Named {
        name: format!("{tracker}-{holding}-{}", setting.scenario.name),
        about: format!("{tracker}, {holding}"),
        scenario: setting.scenario.name,
        setting,
        kind: Kind::Good,
        breaks: &[],
        small: false,
    }
}

/// Whether half of a free block may be isolated, see `pull-isolated-half`.
fn halves_blocks(scenario: &Scenario) -> bool {
    scenario.has(|other| {
        !matches!(
            other,
            Other::Offliner(_) | Other::Remover | Other::HotAdder | Other::Hog(_) | Other::Balloon
        )
    })
}
