// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocating and freeing pages.

use super::Mm;
use super::buddy::Origin;
use super::constraint::{Anywhere, Constraint};
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
    /// It may not sleep (`GFP_ATOMIC`): nothing is reclaimed and no OOM killer invoked for it. In its slow
    /// path it may use any node, and most of what lies below the min watermark.
    pub atomic: bool,
}

impl AllocRequest {
    /// Movable pages of the first node.
    pub fn movable(order: u8) -> Self {
        Self { order, migratetype: MigrateType::Movable, node: 0, atomic: false }
    }

    pub(super) fn is_movable(self) -> bool {
        self.migratetype == MigrateType::Movable
    }
}

/// Why no block was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// No zone has such a block. Linux invokes the OOM killer here.
    #[error("no zone has a free block of that order above its min watermark")]
    OutOfMemory,
    /// The same, of an allocation that may not wait for memory, or for which there is no zone at all. Linux
    /// warns and the allocation fails.
    #[error("no zone that may be used has a free block of that order")]
    Failed,
}

impl Mm {
    /// Allocates a block on `cpu` (`__alloc_pages`).
    ///
    /// # Errors
    /// [`AllocError`]; before that the per-CPU lists were drained.
    pub fn alloc(&self, cpu: usize, request: AllocRequest) -> Result<Pfn, AllocError> {
        self.alloc_constrained(cpu, request, &mut Anywhere)
    }

    /// The same where `constraint` allows.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_constrained(
        &self,
        cpu: usize,
        request: AllocRequest,
        constraint: &mut impl Constraint,
    ) -> Result<Pfn, AllocError> {
        let pfn = self.allocate(cpu, request, constraint)?;
        self.forget_zero(PfnRange::block(pfn, request.order), self.semantics.zero_outlives_use);
        Ok(pfn)
    }

    /// The same, of pages that may be known to be zero still.
    pub(super) fn allocate(
        &self,
        cpu: usize,
        request: AllocRequest,
        constraint: &mut impl Constraint,
    ) -> Result<Pfn, AllocError> {
        let limits = &*constraint;
        let page = {
            let list = self.list_for(cpu, request, limits);
            let low = |zone: &Zone| self.alloc_above(zone, cpu, request, zone.watermarks().low);
            self.next_zoneref(&list, request, 0, limits)
                .and_then(|preferred| self.walk(&list, request, preferred, limits, low))
        };
        page.map_or_else(|| self.alloc_slow(cpu, request, constraint), Ok)
    }

    /// Takes a block if that leaves more than `mark` pages.
    pub(super) fn alloc_above(
        &self,
        zone: &Zone,
        cpu: usize,
        request: AllocRequest,
        mark: u64,
    ) -> Option<Pfn> {
        let (order, movable) = (request.order, request.is_movable());
        let above = zone.is_above_high(order, movable)
            || zone.watermark_ok(order, mark + zone.reserve(movable), movable);
        if !above {
            return None;
        }
        self.pcp_alloc(zone, cpu, order, request.migratetype)
            .or_else(|| self.rmqueue(zone, &mut zone.lock(), order, request.migratetype))
    }

    /// The last try, with the zone's lock held: a free block that is being split is missing from the
    /// counters for a moment. Linux tries more often than such a moment lasts.
    pub(super) fn alloc_locked(&self, zone: &Zone, request: AllocRequest) -> Option<Pfn> {
        let (order, movable) = (request.order, request.is_movable());
        let mut area = zone.lock();
        let mark = zone.watermarks().min + zone.reserve(movable);
        if !zone.watermark_ok(order, mark, movable) {
            return None;
        }
        self.rmqueue(zone, &mut area, order, request.migratetype)
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
