// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What configurations are made of.

use core::time::Duration;

use super::super::invariant::Holds;
use super::super::setting::{Scenario, Setting};
use crate::{Configuration, Kind};
use guest_driver::page_alloc::KernelSemantics;
use guest_driver::reporting::{
    Config, Holding, HotplugLock, OnBusy, OnTimeout, TrackerKind, WatermarkGuard, ZeroReports,
};

/// A configuration of this model.
pub(in super::super) type Named = Configuration<Setting, Holds>;

/// A reporter that is meant to work.
pub(super) fn reporter(scenario: &Scenario, tracker: TrackerKind, holding: Holding) -> Config {
    Config {
        tracker,
        flaw: None,
        holding,
        granule_order: scenario.granule_order,
        // Mainline looks at no zone that has not a whole batch to spare.
        batch: if tracker == TrackerKind::ReportedFlag { 2 } else { scenario.batch },
        delay: Duration::ZERO,
        acknowledge_timeout: None,
        on_timeout: OnTimeout::Hold,
        watermark_guard: WatermarkGuard::Zone,
        on_busy: OnBusy::Requeue,
        hotplug_lock: HotplugLock::None,
        grows: false,
        look_again: true,
        zero_reports: if scenario.plan.zeroed { ZeroReports::AsTold } else { ZeroReports::None },
    }
}

/// `reporter` in `scenario`, by the rules of today's kernel.
pub(super) fn setting(scenario: Scenario, reporter: Config) -> Setting {
    let semantics = KernelSemantics::V6_19;
    Setting { scenario, reporter, semantics, nudge: false, keeps_types: true }
}

/// A setting that should break one of these.
pub(super) fn wrong(
    kind: Kind,
    name: &str,
    about: &str,
    setting: Setting,
    breaks: &'static [Holds],
) -> Named {
    Named {
        name: name.to_owned(),
        about: about.to_owned(),
        scenario: setting.scenario.name,
        setting,
        kind,
        breaks,
        small: false,
    }
}
