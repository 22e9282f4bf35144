// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a scenario consists of.

use guest_driver::page_alloc::{AllocRequest, MigrateType, ZonelistFlaw, ZonelistUpdate};

/// A scenario under one scheme.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The actors, and the memory that they share.
    pub scenario: Scenario,
    /// The way to update zonelists.
    pub update: ZonelistUpdate,
    /// A mistake of it.
    pub flaw: Option<ZonelistFlaw>,
    /// Whether a page must come from a zone that may serve it: what the schemes that overwrite a list do
    /// not promise.
    pub eligible: bool,
}

/// The actors, and the memory that they share: a normal zone that can always serve, and a movable one of a
/// single memory block.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name in tables.
    pub name: &'static str,
    /// Who reads zonelists.
    pub readers: Readers,
    /// How many of them.
    pub count: usize,
    /// Allocations of each, or walks.
    pub rounds: usize,
    /// How often the movable zone loses its memory or gets it back. It has some at first.
    pub updates: usize,
    /// The normal zone has free pages between its min and its low watermark only, so that all is for the
    /// slow path.
    pub tight: bool,
    /// Interrupts that come, and allocate.
    pub interrupts: usize,
    /// Lines that another CPU prints. It allocates while it has the console.
    pub lines: usize,
    /// Direct reclaim goes on making progress.
    pub reclaims: bool,
    /// What is looked for is the OOM killer, or an allocation that goes on and on. One that finds no zone at
    /// all as it looks up the preferred one fails without, and is not.
    pub may_fail: bool,
}

/// What reads a zonelist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Unmovable pages of the node with both zones (`GFP_KERNEL`).
    Kernel,
    /// Movable pages of another node only, which has a normal zone (`MPOL_BIND`).
    Bound,
    /// Walks that take nothing, as for movable pages.
    Walk,
}

impl Readers {
    /// What they ask for. All run on the first node.
    pub(super) fn request(self) -> AllocRequest {
        let migratetype = match self {
            Self::Kernel => MigrateType::Unmovable,
            Self::Bound | Self::Walk => MigrateType::Movable,
        };
        AllocRequest { migratetype, ..AllocRequest::movable(0) }
    }

    /// The node of the zone that can always serve.
    pub(super) fn node(self) -> u8 {
        u8::from(self == Self::Bound)
    }
}
