// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A way to update zonelists, in a guest that updates them under allocations.
//!
//! The first node has a movable zone of one block beside its normal one, which leaves the list and comes
//! back. The allocations are of pages that cannot be moved: none is ever in that block, and the normal zone
//! is the second in the list.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use guest_driver::page_alloc::{
    AllocRequest, Constraint, Geometry, KernelSemantics, Layout, MigrateType, Mm, MovePages,
    OfflineError, Pfn, ZoneLayout, ZoneType, ZonelistUpdate,
};

use super::seen::{CPUS, Flip, Got, Subject};

/// Times that the block is found busy, at most.
const MOST_TRIES: usize = 10_000;
/// Linux's, with blocks of 8 MiB, which are soon on- and offline.
const GEOMETRY: Geometry = Geometry { section_order: 11, ..Geometry::LINUX };
/// Of the first node's normal zone: 256 MiB.
const SECTIONS: usize = 32;
/// The movable zone.
const BLOCK: usize = SECTIONS;

/// See the module.
pub(super) struct OfZonelists {
    mm: Arc<Mm>,
    flip: Flip,
}

/// A guest of so many nodes; all but the first have one zone of a block.
pub(super) fn guest(update: ZonelistUpdate, nodes: usize) -> Result<Mm> {
    let zone = |node: usize, kind, sections| {
        Ok(ZoneLayout { node: u8::try_from(node)?, kind, sections: vec![sections] })
    };
    let mut zones = vec![zone(0, ZoneType::Normal, 0..SECTIONS)];
    zones.push(zone(0, ZoneType::Movable, BLOCK..BLOCK + 1));
    zones.extend(
        (1..nodes).map(|node| zone(node, ZoneType::Normal, BLOCK + node..BLOCK + node + 1)),
    );
    let zones = zones.into_iter().collect::<Result<_>>()?;
    let semantics = KernelSemantics { zonelists: update, ..KernelSemantics::default() };
    let sections = SECTIONS + nodes.max(1);
    Ok(Mm::new(&Layout { zones, semantics, ..Layout::flat(GEOMETRY, CPUS, sections) }))
}

impl OfZonelists {
    pub(super) fn new(mm: &Arc<Mm>, flip: Flip) -> Self {
        Self { mm: Arc::clone(mm), flip }
    }
}

/// No limit, with the slow path's restarts counted.
#[derive(Default)]
struct Counting {
    begun: u32,
}

impl Constraint for Counting {
    fn allows(&self, _: u8) -> bool {
        true
    }

    fn in_nodemask(&self, _: u8) -> bool {
        true
    }

    fn begin(&mut self) {
        self.begun += 1;
    }
}

/// Nothing is ever allocated there.
struct NothingToMove;

impl MovePages for NothingToMove {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

/// What both sides of a comparison ask for.
pub(super) fn request() -> AllocRequest {
    AllocRequest { migratetype: MigrateType::Unmovable, ..AllocRequest::movable(0) }
}

impl Subject for OfZonelists {
    fn allocate(&self, cpu: usize) -> Got {
        let mut counting = Counting::default();
        let page = self.mm.alloc_constrained(cpu, request(), &mut counting).ok();
        Got { page, restarts: counting.begun.saturating_sub(1), abandoned: false }
    }

    fn free(&self, cpu: usize, page: Pfn) {
        self.mm.free(cpu, page);
    }

    fn update(&self, turn: u64) -> Result<()> {
        match self.flip {
            Flip::Shrink => self.mm.rebuild_zonelists(),
            Flip::Move if turn.is_multiple_of(2) => {
                let offline = || self.mm.offline_block(BLOCK, &NothingToMove, &|| false);
                // A walk beside an update may have got a page of the block, which cannot be moved and is
                // soon freed.
                let busy = |result: &Result<(), OfflineError>| *result == Err(OfflineError::Busy);
                let mut tries = std::iter::repeat_with(offline).take(MOST_TRIES);
                tries.find(|result| !busy(result)).unwrap_or_else(offline).context("offlining")?;
            }
            Flip::Move => self.mm.online_block(BLOCK).context("onlining")?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_leaves_and_comes_back_under_every_scheme() {
        for &update in ZonelistUpdate::ALL {
            let mm = Arc::new(guest(update, 2).unwrap());
            let subject = OfZonelists::new(&mm, Flip::Move);
            for turn in 0..4 {
                subject.update(turn).unwrap();
                assert_eq!(mm.is_online(BLOCK), turn % 2 == 1, "{update}");
                let page = subject.allocate(0).page.unwrap();
                mm.free(0, page);
            }
        }
    }
}
