// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is measured, as threads that allocate and one that updates see it.

use anyhow::Result;
use guest_driver::page_alloc::Pfn;

/// CPUs that allocate.
pub(super) const CPUS: usize = 2;
/// How the two states differ between which an update goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flip {
    /// The first node is always allowed, so no allocation that takes from it need wait. Of zonelists: they
    /// stay as they are.
    Shrink,
    /// Either node, never both. Of zonelists: a zone leaves, and comes back.
    Move,
}

/// What became of one allocation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Got {
    pub(super) page: Option<Pfn>,
    /// How often the slow path began again.
    pub(super) restarts: u32,
    /// The allocation was in an endless loop.
    pub(super) abandoned: bool,
}

/// What is measured.
pub(super) trait Subject: Send + Sync {
    /// Allocates a page on this CPU.
    fn allocate(&self, cpu: usize) -> Got;

    /// Frees it there.
    fn free(&self, cpu: usize, page: Pfn);

    /// Makes an update, between two states in turn.
    ///
    /// # Errors
    /// If it cannot be made.
    fn update(&self, turn: u64) -> Result<()>;
}
