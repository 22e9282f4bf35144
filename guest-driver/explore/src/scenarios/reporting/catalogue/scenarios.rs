// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scenarios.

use guest_driver::page_alloc::Geometry;
use guest_driver::page_alloc::ZoneType::{Movable, Normal};
use guest_driver::placement::Scheme;

use super::super::invariant::Holds;
use super::super::setting::{Answers, CpuPlan, NO_ZONE, Other, Patience, Scenario, Tasks};

/// No buddy is larger than a pageblock. Kernels before 5.19 isolate such a buddy wrongly, and that
/// is not what is looked for.
pub(super) const NO_STRADDLING: Geometry = Geometry { max_order: 2, ..Geometry::TINY };

/// Two CPUs and the reporter.
pub(super) const CHURN: Scenario = Scenario {
    name: "churn",
    geometry: Geometry::TINY,
    granule_order: Geometry::TINY.pageblock_order,
    zones: [(Movable, 4), NO_ZONE],
    nodes: [0, 0],
    watch_zonelists: false,
    tasks: None,
    shared: false,
    cma: false,
    kernel_pages: 0,
    cpus: 2,
    plan: CpuPlan {
        steps: 6,
        orders: &[0, 1, 2],
        most: 3,
        keep: 1,
        unmovable: false,
        zeroed: false,
    },
    passes: 3,
    suspend: false,
    others: &[],
    batch: 2,
    answers: Answers::Always,
    out_of_memory: None,
};

/// The same with less of everything: what a tracker does wrong by itself shows sooner.
pub(super) const SMALL_CHURN: Scenario = Scenario {
    name: "small-churn",
    geometry: NO_STRADDLING,
    zones: [(Movable, 2), NO_ZONE],
    cpus: 4,
    plan: CpuPlan { steps: 2, orders: &[2], most: 1, keep: 0, ..CHURN.plan },
    passes: 2,
    ..CHURN
};

/// One CPU, and every other isolator: one that releases its range, one that allocates the second half
/// of a free block, and an offliner that soon gives up.
pub(super) const ISOLATORS: Scenario = Scenario {
    name: "isolators",
    cpus: 1,
    others: &[Other::Offliner(Patience::Short), Other::Contig(1), Other::Isolator(1)],
    ..CHURN
};

/// Isolators whose ranges overlap: two that take two pageblocks from the first or from the last, and two
/// that allocate two.
pub(super) const OPPOSITE_ISOLATORS: Scenario = Scenario {
    name: "opposite-isolators",
    zones: [(Movable, 2), NO_ZONE],
    cpus: 1,
    plan: CpuPlan { steps: 3, ..CHURN.plan },
    others: &[Other::Isolator(2), Other::BackwardIsolator, Other::Contig(2), Other::Contig(2)],
    ..CHURN
};

/// Memory comes and goes.
pub(super) const HOTPLUG: Scenario = Scenario {
    name: "hotplug",
    plan: CpuPlan { steps: 4, ..CHURN.plan },
    others: &[Other::Offliner(Patience::Endless), Other::HotAdder],
    ..CHURN
};

/// Memory is added.
pub(super) const HOT_ADD: Scenario =
    Scenario { name: "hot-add", others: &[Other::HotAdder], ..HOTPLUG };

/// Memory goes off- and online.
pub(super) const OFFLINE: Scenario =
    Scenario { name: "offline", others: &[Other::Offliner(Patience::Endless)], ..HOTPLUG };

/// Memory of one zone is removed, and comes back to the other.
pub(super) const HOT_REMOVE: Scenario = Scenario {
    name: "hot-remove",
    zones: [(Movable, 2), (Movable, 2)],
    others: &[Other::Remover],
    ..HOTPLUG
};

/// One CPU needs one page, of so little memory that a batch could hold all of it. It takes no more
/// while a report is under way than lie between the low and the min watermark: that much a guard
/// can promise.
pub(super) const PRESSURE: Scenario = Scenario {
    name: "pressure",
    geometry: TIGHT,
    zones: [(Movable, 6), NO_ZONE],
    cpus: 1,
    plan: CpuPlan { steps: 8, orders: &[0], most: 1, keep: 0, ..CHURN.plan },
    out_of_memory: Some(Holds::NoOomWhileWithheld),
    batch: 32,
    ..CHURN
};

/// The same, bound to one node, of which a batch could hold all. The other node has as much, and all of it
/// is free.
pub(super) const BOUND_TASK: Scenario = Scenario {
    name: "bound-task",
    zones: [(Movable, 6), (Movable, 6)],
    nodes: [0, 1],
    tasks: Some(Tasks { scheme: Scheme::CheckAtRetry, mems: &[&[0]] }),
    ..PRESSURE
};

/// The same, and the cpuset goes to the other node and back.
pub(super) const MOVED_TASK: Scenario = Scenario {
    name: "moved-task",
    tasks: Some(Tasks { scheme: Scheme::CheckAtRetry, mems: &[&[0], &[1], &[0]] }),
    out_of_memory: Some(Holds::NoOomWhileAZoneCanServe),
    ..BOUND_TASK
};

/// The last memory block of a zone, which is reported, goes off- and online, and zonelists lose the zone and
/// get it back. A CPU needs a page of the other zone, which is at its low watermark.
pub(super) const LAST_BLOCK: Scenario = Scenario {
    name: "last-block",
    geometry: TIGHT,
    zones: [(Movable, 1), (Normal, 4)],
    watch_zonelists: true,
    cpus: 1,
    plan: CpuPlan { steps: 8, orders: &[0], most: 1, keep: 0, unmovable: true, zeroed: false },
    kernel_pages: 18,
    others: &[Other::Offliner(Patience::Endless)],
    out_of_memory: Some(Holds::NoOomWhileAZoneCanServe),
    ..CHURN
};

/// The low watermark of a zone is at ten pages.
const TIGHT: Geometry = Geometry { min_watermark: (8, 8), ..Geometry::TINY };

/// The first of two zones is low as soon as an actor has taken half of it. The other one has plenty, and
/// must be reported all the same. When the first recovers, by frees of single pages, so must that.
pub(super) const LOW_ZONE: Scenario = Scenario {
    name: "low-zone",
    geometry: TIGHT,
    zones: [(Movable, 3), (Movable, 3)],
    cpus: 1,
    plan: CpuPlan { steps: 4, orders: &[1, 2], ..CHURN.plan },
    others: &[Other::Hog(12)],
    ..CHURN
};

/// One CPU and a section with two zones. With a pageblock each, they would have less than the watermarks
/// let the reporter hold.
pub(super) const SHARED_SECTION: Scenario = Scenario {
    name: "shared-section",
    geometry: Geometry { section_order: 4, ..NO_STRADDLING },
    zones: [(Movable, 1), NO_ZONE],
    shared: true,
    cpus: 1,
    // The pageblock that the reporter visits last is the reserve, so that the CPU has one of the first in
    // its zone. Blocks of this order are on no per-CPU list, where those of a granule would stay.
    cma: true,
    plan: CpuPlan { orders: &[1], ..SMALL_CHURN.plan },
    ..SMALL_CHURN
};

/// One CPU frees one block while the reporter runs: small enough to take every schedule.
pub(super) const SMALLEST: Scenario = Scenario {
    name: "smallest",
    geometry: NO_STRADDLING,
    zones: [(Movable, 1), NO_ZONE],
    cpus: 1,
    plan: CpuPlan { steps: 2, orders: &[2], most: 1, keep: 0, ..CHURN.plan },
    passes: 1,
    ..CHURN
};

/// As churn, and some reports are not taken, and some acknowledged too late.
pub(super) const FAULTY_HOST: Scenario = Scenario {
    name: "faulty-host",
    answers: Answers::OneInThree,
    plan: CpuPlan { steps: 5, orders: &[0, 2], keep: 2, ..CHURN.plan },
    passes: 6,
    ..CHURN
};

/// The first report is not taken, and one CPU keeps a page of what was in it: the rest is too small to be
/// found with it.
pub(super) const REFUSING_HOST: Scenario = Scenario {
    name: "refusing-host",
    answers: Answers::AllButFirst,
    zones: [(Movable, 2), NO_ZONE],
    cpus: 1,
    plan: CpuPlan { steps: 1, orders: &[0], most: 1, keep: 1, ..CHURN.plan },
    passes: 2,
    ..CHURN
};

/// Two zones, one of which has pageblocks of unmovable pages. It must have some memory to spare for
/// its watermark.
pub(super) const ZONES: Scenario = Scenario {
    name: "zones",
    zones: [(Normal, 6), (Movable, 2)],
    plan: CpuPlan { unmovable: true, ..CHURN.plan },
    ..CHURN
};

/// A memory block of either zone goes off- and online, or does not, because an unmovable page is in it.
pub(super) const ZONES_OFFLINE: Scenario = Scenario {
    name: "zones-offline",
    plan: CpuPlan { steps: 4, ..ZONES.plan },
    others: &[Other::Offliner(Patience::Endless)],
    ..ZONES
};

/// A pageblock is a reserve, of which an actor allocates; movable pages may live in it meanwhile.
pub(super) const CMA: Scenario =
    Scenario { name: "cma", cma: true, others: &[Other::ReserveUser], ..CHURN };

/// CPUs ask for zeros, beside a balloon and a host that discards some reports in part only.
pub(super) const ZERO_PAGES: Scenario = Scenario {
    name: "zero-pages",
    geometry: NO_STRADDLING,
    zones: [(Movable, 2), NO_ZONE],
    plan: CpuPlan { steps: 6, orders: &[0, 2], most: 2, keep: 0, zeroed: true, ..CHURN.plan },
    others: &[Other::Balloon],
    ..CHURN
};

/// The reporter is suspended while CPUs allocate and free, and resumed.
pub(super) const SUSPEND: Scenario =
    Scenario { name: "suspend", suspend: true, passes: 4, ..CHURN };

/// Granules of half a pageblock, which can only be pulled.
pub(super) const HALF_GRANULES: Scenario =
    Scenario { name: "half-granules", granule_order: CHURN.granule_order - 1, ..CHURN };

/// Granules of two pageblocks, and an isolator of one of them.
pub(super) const DOUBLE_GRANULES: Scenario = Scenario {
    name: "double-granules",
    granule_order: CHURN.granule_order + 1,
    others: &[Other::Isolator(1)],
    ..CHURN
};

/// Those that every good configuration must stand.
pub(super) const ALL: [Scenario; 19] = [
    SMALL_CHURN,
    CHURN,
    ISOLATORS,
    OPPOSITE_ISOLATORS,
    HOTPLUG,
    HOT_REMOVE,
    PRESSURE,
    BOUND_TASK,
    LOW_ZONE,
    FAULTY_HOST,
    REFUSING_HOST,
    ZONES,
    ZONES_OFFLINE,
    SHARED_SECTION,
    CMA,
    SUSPEND,
    HALF_GRANULES,
    DOUBLE_GRANULES,
    ZERO_PAGES,
];
