// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is meant to work.

use super::parts::{Named, reporter, setting};
use super::scenarios::ALL;
use crate::Kind;
use guest_driver::reporting::{Holding, TrackerKind};

/// Every tracker with both ways to hold, in every scenario.
pub(super) fn good() -> Vec<Named> {
    let mut all = Vec::new();
    for scenario in ALL {
        for &tracker in TrackerKind::ALL {
            for &holding in Holding::ALL {
                let mut scenario = scenario.clone();
                if tracker == TrackerKind::ReportedFlag {
                    // Mainline forgets what it has no memory to spare for, so there is enough.
                    (scenario.sections, scenario.movable) = match scenario.movable {
                        0 if scenario.shared => {
                            scenario.geometry.section_order = 6;
                            (1, 0)
                        }
                        0 => (8, 0),
                        _ => (12, 4),
                    };
                }
                let reporter = reporter(&scenario, tracker, holding);
                let mut setting = setting(scenario, reporter);
                setting.nudge = tracker == TrackerKind::ReportedFlag;
                setting.keeps_types = holding == Holding::Isolate;
                if holding == Holding::Pull {
                    let isolated = setting.scenario.contig || setting.scenario.cma;
                    setting.semantics.putback_by_pageblock = isolated;
                }
                all.push(Named {
                    name: format!("{tracker}-{holding}-{}", setting.scenario.name),
                    about: format!("{tracker}, {holding}"),
                    scenario: setting.scenario.name,
                    setting,
                    kind: Kind::Good,
                    breaks: &[],
                    small: false,
                });
            }
        }
    }
    all
}
