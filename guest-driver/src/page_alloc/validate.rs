// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks counters and lists against the frames.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::Mm;
use super::frame::FrameState;
use super::geometry::{MigrateType, Pfn};
use super::zone::ZoneId;

/// Where the books do not agree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistency {
    /// A block is on a list that it does not belong to, or its frame does not say so.
    #[error("{pfn:?} is on the list of order {order}, {migratetype:?}, and is {state:?}")]
    Listed {
        /// The block's first frame.
        pfn: Pfn,
        /// Of the list.
        order: u8,
        /// Of the list.
        migratetype: MigrateType,
        /// Of the frame.
        state: FrameState,
    },
    /// A frame belongs to no block, or to two.
    #[error("{pfn:?} is {state:?}, where a block should begin")]
    NoBlock {
        /// The frame.
        pfn: Pfn,
        /// What it is.
        state: FrameState,
    },
    /// A counter is wrong.
    #[error("{what} of zone {zone} is {counted}, and {found} by looking")]
    Count {
        /// Which counter.
        what: &'static str,
        /// Which zone.
        zone: usize,
        /// What the books say.
        counted: u64,
        /// What is there.
        found: u64,
    },
}

impl Mm {
    /// Checks everything. Others may go on meanwhile on other zones only.
    ///
    /// # Errors
    /// The first [`Inconsistency`].
    pub fn validate(&self) -> Result<(), Inconsistency> {
        (0..self.zone_count()).try_for_each(|zone| self.validate_zone(ZoneId(zone)))
    }

    fn validate_zone(&self, id: ZoneId) -> Result<(), Inconsistency> {
        let zone = self.zone(id);
        let pcp: Vec<_> = zone.pcp.iter().map(crate::sync::Lock::lock).collect();
        let area = zone.lock();
        let same = |what, counted: u64, found: u64| {
            if counted == found {
                Ok(())
            } else {
                Err(Inconsistency::Count { what, zone: id.0, counted, found })
            }
        };
        let (mut free, mut cma, mut all_free) = (0, 0, 0);
        for order in 0..=self.geometry.max_order {
            let mut blocks = 0;
            for &migratetype in MigrateType::ALL {
                for pfn in self.list(&area, order, migratetype) {
                    let state = self.state(pfn);
                    if state.buddy_order() != Some(order)
                        || self.sections.migratetype(pfn) != migratetype
                        || !pfn.is_aligned(order)
                        || self.zone_of(pfn) != Some(id)
                    {
                        return Err(Inconsistency::Listed { pfn, order, migratetype, state });
                    }
                    blocks += 1;
                    all_free += 1_u64 << order;
                    match migratetype {
                        MigrateType::Isolate => {}
                        MigrateType::Cma => {
                            free += 1 << order;
                            cma += 1 << order;
                        }
                        _ => free += 1 << order,
                    }
                }
            }
            same("nr_free", area.nr_free[usize::from(order)], blocks)?;
        }
        same("NR_FREE_PAGES", zone.free_pages(), free)?;
        same("NR_FREE_CMA_PAGES", zone.free_cma_pages(), cma)?;

        let mut on_pcp = 0;
        for pcp in &pcp {
            let mut pages = 0;
            for (pfn, order) in pcp.blocks(&self.geometry) {
                let state = self.state(pfn);
                if state != (FrameState::Pcp { order }) {
                    return Err(Inconsistency::NoBlock { pfn, state });
                }
                pages += 1_u64 << order;
            }
            same("per-CPU count", u64::from(pcp.pages()), pages)?;
            on_pcp += pages;
        }
        self.validate_frames(id, all_free, on_pcp)?;
        Ok(())
    }

    /// Every frame of an online section belongs to exactly one block, and the blocks add up.
    fn validate_frames(&self, id: ZoneId, on_lists: u64, on_pcp: u64) -> Result<(), Inconsistency> {
        let zone = self.zone(id);
        let (mut managed, mut free, mut pcp, mut isolated) = (0, 0, 0, 0);
        let sections = (0..self.section_count()).filter(|&index| self.is_online(index));
        let of_zone = sections.flat_map(|index| self.sections.by_zone(index));
        for (_, range) in of_zone.filter(|&(zone, _)| zone == id) {
            let mut pfn = range.start;
            while pfn < range.end {
                let pages = match self.state(pfn) {
                    FrameState::Buddy { order, .. } => {
                        free += 1_u64 << order;
                        1 << order
                    }
                    FrameState::Pcp { order } => {
                        pcp += 1_u64 << order;
                        1 << order
                    }
                    FrameState::Held { order } | FrameState::Allocated { order, .. } => 1 << order,
                    state => return Err(Inconsistency::NoBlock { pfn, state }),
                };
                managed += u64::from(pages);
                pfn = pfn.plus(pages);
            }
            let blocks = range.step(self.geometry.pageblock_order);
            isolated += blocks.filter(|&block| self.is_isolated(block)).count() as u64;
        }
        let same = |what, counted: u64, found: u64| {
            if counted == found {
                Ok(())
            } else {
                Err(Inconsistency::Count { what, zone: id.0, counted, found })
            }
        };
        same("pages on free lists", on_lists, free)?;
        same("pages on per-CPU lists", on_pcp, pcp)?;
        same("managed pages", zone.managed.load(Ordering::Relaxed), managed)?;
        same("nr_isolate_pageblock", zone.isolated_blocks(), isolated)
    }
}
