// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocating and freeing pages.

use super::Mm;
use super::buddy::Origin;
use super::frame::FrameState;
use super::geometry::{MigrateType, Pfn, PfnRange};
use super::zone::Zone;

/// A request for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocRequest {
    /// `1 << order` pages.
    pub order: u8,
    /// Unmovable, movable or reclaimable.
    pub migratetype: MigrateType,
    /// The preferred node.
    pub node: u8,
}

impl AllocRequest {
    /// Movable pages of the first node.
    pub fn movable(order: u8) -> Self {
        Self { order, migratetype: MigrateType::Movable, node: 0 }
    }
}

/// Why no block was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// No zone has such a block. Linux invokes the OOM killer here.
    #[error("no zone has a free block of that order above its min watermark")]
    OutOfMemory,
}

impl Mm {
    /// Allocates a block on `cpu` (`__alloc_pages`), without reclaim: there is nothing to reclaim.
    ///
    /// # Errors
    /// [`AllocError`]; before that the per-CPU lists were drained.
    pub fn alloc(&self, cpu: usize, request: AllocRequest) -> Result<Pfn, AllocError> {
        self.alloc_above(cpu, request, |zone| zone.watermarks().low)
            .or_else(|| self.alloc_above(cpu, request, |zone| zone.watermarks().min))
            .or_else(|| {
                for zone in 0..self.zone_count() {
                    self.drain_all(super::ZoneId(zone));
                }
                self.alloc_locked(request)
            })
            .ok_or(AllocError::OutOfMemory)
    }

    /// Walks the zones in order of preference (`get_page_from_freelist`).
    fn alloc_above(
        &self,
        cpu: usize,
        request: AllocRequest,
        mark: impl Fn(&Zone) -> u64,
    ) -> Option<Pfn> {
        let movable = request.migratetype == MigrateType::Movable;
        let mut zones = self.zonelists.of(request.node, movable).iter().map(|&id| self.zone(id));
        zones.find_map(|zone| {
            if !zone.is_above_high(request.order, movable)
                && !zone.watermark_ok(request.order, mark(zone) + zone.reserve(movable), movable)
            {
                return None;
            }
            let pfn = self.alloc_in(zone, cpu, request)?;
            self.set_state(pfn, FrameState::Allocated { order: request.order, movable });
            Some(pfn)
        })
    }

    /// The last try, with the zone's lock held: a free block that is being split is missing from the
    /// counters for a moment. Linux tries more often than such a moment lasts.
    fn alloc_locked(&self, request: AllocRequest) -> Option<Pfn> {
        let AllocRequest { order, migratetype, node } = request;
        let movable = migratetype == MigrateType::Movable;
        let mut zones = self.zonelists.of(node, movable).iter().map(|&id| self.zone(id));
        zones.find_map(|zone| {
            let mut area = zone.lock();
            let mark = zone.watermarks().min + zone.reserve(movable);
            if !zone.watermark_ok(order, mark, movable) {
                return None;
            }
            let pfn = self.rmqueue(zone, &mut area, order, migratetype)?;
            self.set_state(pfn, FrameState::Allocated { order, movable });
            Some(pfn)
        })
    }

    pub(super) fn alloc_in(&self, zone: &Zone, cpu: usize, request: AllocRequest) -> Option<Pfn> {
        let AllocRequest { order, migratetype, .. } = request;
        self.pcp_alloc(zone, cpu, order, migratetype)
            .or_else(|| self.rmqueue(zone, &mut zone.lock(), order, migratetype))
    }

    /// Sets the user of an allocated block, for [`super::MovePages`] to find.
    pub fn set_owner(&self, pfn: Pfn, owner: u32) {
        if let Some(frame) = self.sections.frame(pfn) {
            frame.set_owner(Some(owner));
        }
    }

    /// Frees an allocated block on `cpu` (`__free_pages`).
    ///
    /// # Panics
    /// If no allocated block begins there: a double free, or a stray one.
    pub fn free(&self, cpu: usize, pfn: Pfn) {
        let found = self.sections.of(pfn).map(|of| (of, self.sections.frame_in(of, pfn)));
        let Some((section, frame)) = found else { panic!("bad page: {pfn:?} is no memory") };
        let FrameState::Allocated { order, .. } = frame.state() else {
            panic!("bad page state: {pfn:?} is freed and is {:?}", frame.state());
        };
        frame.set_owner(None);
        let zone = self.zone(self.sections.zone_in(section, pfn));
        let mt = self.sections.migratetype_in(section, pfn);
        if !self.pcp_free(zone, cpu, pfn, frame, order, mt) {
            let mut area = zone.lock();
            // The pageblocks of a larger block may have become of different types, isolated ones
            // among them, so each is freed by itself (`split_large_buddy`).
            let part = order.min(self.geometry.pageblock_order);
            for head in PfnRange::block(pfn, order).step(part) {
                self.free_one(zone, &mut area, head, part, Origin::Freed);
            }
        }
    }
}
