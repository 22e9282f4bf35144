// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a scenario consists of.

use guest_driver::page_alloc::{Geometry, KernelSemantics, Pfn, PfnRange};
use guest_driver::reporting::Config;

/// A scenario with one way to report.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The actors, and the memory that they share.
    pub scenario: Scenario,
    /// The way to report.
    pub reporter: Config,
    /// The kernel whose rules apply.
    pub semantics: KernelSemantics,
    /// Before the check for lost reports, one large block is freed. Mainline promises no more than
    /// that a report follows the next such free.
    pub nudge: bool,
    /// Whether pageblocks of every migratetype keep theirs when they are reported. Those of a reserve
    /// must in any case.
    pub keeps_types: bool,
}

/// The actors, and the memory that they share.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name in tables.
    pub name: &'static str,
    /// Orders and sizes.
    pub geometry: Geometry,
    /// Sections that are online from the start.
    pub sections: usize,
    /// Of them, those of a second zone, for movable pages as all of the first is without one. With
    /// one the first is a normal zone.
    pub movable: usize,
    /// The second half of the last section is a second zone, from which allocations are made first.
    pub shared: bool,
    /// A pageblock is a reserve for contiguous allocations, and an actor makes some.
    pub cma: bool,
    /// Number of CPUs.
    pub cpus: usize,
    /// What each of them does.
    pub plan: CpuPlan,
    /// How often the reporter looks for work while the others run.
    pub passes: usize,
    /// A memory block goes off- and online.
    pub offline: Option<Patience>,
    /// One pageblock is allocated as a whole.
    pub contig: bool,
    /// One pageblock is isolated and released.
    pub isolate: bool,
    /// A section comes online that was absent.
    pub hot_add: bool,
    /// The most ranges of a report.
    pub batch: usize,
    /// Whether the host acknowledges reports.
    pub answers: Answers,
    /// A single page can always be allocated, unless reports withhold it.
    pub never_out_of_memory: bool,
}

impl Scenario {
    /// The reserve: the second half of the first block of the largest order.
    pub(super) fn reserve(&self) -> PfnRange {
        let order = self.geometry.pageblock_order;
        PfnRange::block(Pfn(1 << order), order)
    }
}

/// What a CPU does.
#[derive(Clone, Copy, Debug)]
pub struct CpuPlan {
    /// How often it allocates or frees.
    pub steps: usize,
    /// The orders that it allocates.
    pub orders: &'static [u8],
    /// The most blocks that it holds at once.
    pub most: usize,
    /// Half of them are unmovable.
    pub unmovable: bool,
}

/// How long an offliner tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until it succeeds, as Linux does.
    Endless,
    /// It is interrupted when it finds its range not free for the second time.
    Short,
}

/// Whether a host acknowledges reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Every report, before the reporter's time is up.
    Always,
    /// Of three reports the first too late, the second not taken at all, and the third as it should.
    OneInThree,
}
