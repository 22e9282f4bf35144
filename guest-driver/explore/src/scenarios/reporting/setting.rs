// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a scenario consists of.

use super::invariant::Holds;
use guest_driver::page_alloc::{Geometry, KernelSemantics, Pfn, PfnRange, ZoneType};
use guest_driver::placement::Scheme;
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
    /// What a tracker counts in, an order.
    pub granule_order: u8,
    /// The zones, in the order in which an allocation prefers them if they are of one kind, each with
    /// the sections that are online from the start; none of a zone that is not there.
    pub zones: [(ZoneType, usize); 2],
    /// The NUMA node of each zone.
    pub nodes: [u8; 2],
    /// Zonelists are part of what is explored, not only where they change.
    pub watch_zonelists: bool,
    /// The CPUs run tasks of a cpuset; none where they may use all memory.
    pub tasks: Option<Tasks>,
    /// The second half of the last section is a second zone, from which allocations are made first.
    pub shared: bool,
    /// A pageblock is a reserve for contiguous allocations.
    pub cma: bool,
    /// Pages of the second zone that the kernel has taken before the reporter registers. They cannot be
    /// moved.
    pub kernel_pages: usize,
    /// Number of CPUs.
    pub cpus: usize,
    /// What each of them does.
    pub plan: CpuPlan,
    /// How often the reporter looks for work while the others run.
    pub passes: usize,
    /// The reporter is suspended once, and resumed.
    pub suspend: bool,
    /// Actors beside CPUs and reporter.
    pub others: &'static [Other],
    /// The most ranges of a report.
    pub batch: usize,
    /// Whether the host acknowledges reports.
    pub answers: Answers,
    /// What is broken when a single page cannot be allocated; nothing where all memory can be in use.
    pub out_of_memory: Option<Holds>,
}

/// The tasks that the CPUs run, one each.
#[derive(Clone, Copy, Debug)]
pub struct Tasks {
    /// How their cpuset is updated.
    pub scheme: Scheme,
    /// The nodes of the cpuset at first, and those of each update.
    pub mems: &'static [&'static [u8]],
}

/// A zone that is not there.
pub(super) const NO_ZONE: (ZoneType, usize) = (ZoneType::Movable, 0);

impl Scenario {
    /// Sections that are online from the start.
    pub(super) fn sections(&self) -> usize {
        self.zones.iter().map(|&(_, sections)| sections).sum()
    }

    /// Sections that can go offline; the kernel's pages are in those of the second zone.
    pub(super) fn offlinable(&self) -> usize {
        if self.kernel_pages > 0 { self.zones[0].1 } else { self.sections() }
    }

    /// Pageblocks of all sections.
    pub(super) fn pageblocks(&self) -> usize {
        self.sections() * self.geometry.section_blocks()
    }

    /// The reserve: the second half of the first block of the largest order, or of a shared section the
    /// last pageblock.
    pub(super) fn reserve(&self) -> PfnRange {
        let order = self.geometry.pageblock_order;
        let block = if self.shared { self.pageblocks() - 1 } else { 1 };
        PfnRange::block(Pfn(u32::try_from(block).unwrap_or(0) << order), order)
    }

    /// Whether one of these actors is there.
    pub(super) fn has(&self, of_interest: impl Fn(Other) -> bool) -> bool {
        self.others.iter().any(|&other| of_interest(other))
    }

    /// Whether memory goes offline.
    pub(super) fn offlines(&self) -> bool {
        self.has(|other| matches!(other, Other::Offliner(_) | Other::Remover))
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
    /// The most blocks that it keeps at the end. A block that is lost beside them stays so, where a
    /// free would merge it with its neighbors and have all of them reported.
    pub keep: usize,
    /// Half of them are unmovable.
    pub unmovable: bool,
    /// Half of them ask for zeros, and the host discards every other report in part: see `host`.
    pub zeroed: bool,
}

/// An actor beside CPUs and reporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// Takes a memory block off- and online.
    Offliner(Patience),
    /// Takes a memory block offline, removes it, adds it to the next zone and takes it online.
    Remover,
    /// Allocates so many pageblocks side by side as a whole.
    Contig(u32),
    /// Allocates the reserve as a whole.
    ReserveUser,
    /// Isolates so many pageblocks side by side and releases them.
    Isolator(u32),
    /// The same with two pageblocks, the last of them first.
    BackwardIsolator,
    /// Adds a section that was absent and takes it online.
    HotAdder,
    /// Allocates so many single pages and keeps them. When all is quiet it frees most of them, but some
    /// of each pageblock.
    Hog(usize),
    /// Inflates single pages, of which the host discards every other one, and deflates them.
    Balloon,
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
    /// Every report but the first, which is not taken.
    AllButFirst,
    /// Of three reports the first too late, the second not taken at all, and the third as it should.
    OneInThree,
}
