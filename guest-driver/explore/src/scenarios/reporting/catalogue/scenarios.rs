// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scenarios.

use guest_driver::page_alloc::Geometry;

use super::super::setting::{Answers, CpuPlan, Patience, Scenario};

/// No buddy is larger than a pageblock. Kernels before 5.19 isolate such a buddy wrongly, and that
/// is not what is looked for.
pub(super) const NO_STRADDLING: Geometry = Geometry { max_order: 2, ..Geometry::TINY };

/// Two CPUs and the reporter.
pub(super) const CHURN: Scenario = Scenario {
    name: "churn",
    geometry: Geometry::TINY,
    sections: 4,
    movable: 0,
    shared: false,
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
pub(super) const SMALL_CHURN: Scenario = Scenario {
    name: "small-churn",
    geometry: NO_STRADDLING,
    sections: 2,
    cpus: 4,
    plan: CpuPlan { steps: 2, orders: &[2], most: 1, ..CHURN.plan },
    passes: 2,
    ..CHURN
};

/// One CPU, and every other isolator: one that releases its range, one that allocates the second half
/// of a free block, and an offliner that soon gives up.
pub(super) const ISOLATORS: Scenario = Scenario {
    name: "isolators",
    cpus: 1,
    offline: Some(Patience::Short),
    contig: true,
    isolate: true,
    ..CHURN
};

/// Memory comes and goes.
pub(super) const HOTPLUG: Scenario = Scenario {
    name: "hotplug",
    plan: CpuPlan { steps: 4, ..CHURN.plan },
    offline: Some(Patience::Endless),
    hot_add: true,
    ..CHURN
};

/// One CPU needs one page, of so little memory that a batch could hold all of it. It takes no more
/// while a report is under way than lie between the low and the min watermark: that much a guard
/// can promise.
pub(super) const PRESSURE: Scenario = Scenario {
    name: "pressure",
    geometry: Geometry { min_watermark: (8, 8), ..Geometry::TINY },
    sections: 6,
    cpus: 1,
    plan: CpuPlan { steps: 8, orders: &[0], most: 1, ..CHURN.plan },
    never_out_of_memory: true,
    batch: 32,
    ..CHURN
};

/// One CPU and a section with two zones. With a pageblock each, they would have less than the watermarks
/// let the reporter hold.
pub(super) const SHARED_SECTION: Scenario = Scenario {
    name: "shared-section",
    geometry: Geometry { section_order: 4, ..NO_STRADDLING },
    sections: 1,
    shared: true,
    cpus: 1,
    plan: CpuPlan { steps: 6, orders: &[2], most: 1, ..CHURN.plan },
    passes: 4,
    ..SMALL_CHURN
};

/// One CPU frees one block while the reporter runs: small enough to take every schedule.
pub(super) const SMALLEST: Scenario = Scenario {
    name: "smallest",
    geometry: NO_STRADDLING,
    sections: 1,
    cpus: 1,
    plan: CpuPlan { steps: 2, orders: &[2], most: 1, ..CHURN.plan },
    passes: 1,
    ..CHURN
};

/// As churn, and some reports are not taken, and some acknowledged too late.
pub(super) const FAULTY_HOST: Scenario =
    Scenario { name: "faulty-host", answers: Answers::OneInThree, passes: 6, ..CHURN };

/// Two zones, one of which has pageblocks of unmovable pages. It must have some memory to spare for
/// its watermark.
pub(super) const ZONES: Scenario = Scenario {
    name: "zones",
    sections: 8,
    movable: 2,
    plan: CpuPlan { unmovable: true, ..CHURN.plan },
    ..CHURN
};

/// A pageblock is a reserve, of which an actor allocates; movable pages may live in it meanwhile.
pub(super) const CMA: Scenario = Scenario { name: "cma", cma: true, ..CHURN };

/// Those that every good configuration must stand.
pub(super) const ALL: [Scenario; 9] =
    [SMALL_CHURN, CHURN, ISOLATORS, HOTPLUG, PRESSURE, FAULTY_HOST, ZONES, SHARED_SECTION, CMA];
