// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Zones: free lists, per-CPU lists, watermarks and counters.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::buddy::free_area::FreeArea;
use super::geometry::{Geometry, MigrateType};
use super::pcp::lists::{Pcp, PcpSizes};
use crate::sync::{Guard, Lock};

/// A zone, by its place in [`super::Layout::zones`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneId(pub usize);

/// What a zone may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZoneType {
    /// Any page (`ZONE_NORMAL`).
    Normal,
    /// Only pages that can be moved (`ZONE_MOVABLE`), so that it can be offlined.
    Movable,
}

/// Free pages at which a zone changes its behaviour, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// Below it only the kernel itself may allocate.
    pub min: u64,
    /// Below it reclaim is woken, and allocations look elsewhere first.
    pub low: u64,
    /// At it reclaim goes to sleep again.
    pub high: u64,
}

/// What every holder of the zone's lock writes and every allocation reads: apart from the lock, for
/// which others wait, and from what seldom changes.
#[derive(Debug)]
#[repr(align(128))]
struct Counters {
    /// NR_FREE_PAGES: free pages that are not isolated and not on a per-CPU list.
    free: AtomicU64,
    free_cma: AtomicU64,
    /// Free pages at which the hook hears that the zone has recovered; [`NOT_AWAITED`] if it need not.
    awaited: AtomicU64,
}

/// No zone has so many free pages.
const NOT_AWAITED: u64 = u64::MAX;

/// A zone. Its pages are those of the sections that name it.
#[derive(Debug)]
pub struct Zone {
    pub(crate) node: u8,
    pub(crate) kind: ZoneType,
    area: Lock<FreeArea>,
    pub(crate) pcp: Box<[Lock<Pcp>]>,
    pub(crate) pcp_disabled: AtomicU32,
    /// An allocation has found the zone below its high watermark (`ZONE_BELOW_HIGH`).
    below_high: AtomicBool,
    counters: Counters,
    pub(crate) managed: AtomicU64,
    /// `nr_isolate_pageblock`.
    pub(crate) isolated_blocks: AtomicU64,
    watermarks: [AtomicU64; 3],
    /// `lowmem_reserve` of requests that a movable zone of the node could serve.
    lowmem_reserve: AtomicU64,
    /// How often all per-CPU lists were drained.
    pub(crate) drains: AtomicU64,
}

impl Zone {
    pub(crate) fn new(geometry: &Geometry, node: u8, kind: ZoneType, cpus: usize) -> Self {
        Self {
            node,
            kind,
            area: Lock::new(FreeArea::new()),
            pcp: (0..cpus).map(|_| Lock::new(Pcp::new(geometry))).collect(),
            pcp_disabled: AtomicU32::new(0),
            below_high: AtomicBool::new(false),
            counters: Counters {
                free: AtomicU64::new(0),
                free_cma: AtomicU64::new(0),
                awaited: AtomicU64::new(NOT_AWAITED),
            },
            managed: AtomicU64::new(0),
            isolated_blocks: AtomicU64::new(0),
            watermarks: Default::default(),
            lowmem_reserve: AtomicU64::new(0),
            drains: AtomicU64::new(0),
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_, FreeArea> {
        self.area.lock()
    }

    /// Books `pages` more free pages, or fewer, of this migratetype. Under the zone's lock.
    pub(crate) fn account(&self, mt: MigrateType, pages: i64) {
        let add = |counter: &AtomicU64| {
            counter.store(
                counter.load(Ordering::Relaxed).wrapping_add_signed(pages),
                Ordering::Relaxed,
            );
        };
        match mt {
            MigrateType::Isolate => {}
            MigrateType::Cma => {
                add(&self.counters.free);
                add(&self.counters.free_cma);
            }
            _ => add(&self.counters.free),
        }
    }

    /// Whether the zone has as many free pages as are awaited. Under the zone's lock.
    pub(crate) fn has_recovered(&self) -> bool {
        self.free_pages() >= self.counters.awaited.load(Ordering::Relaxed)
    }

    /// Awaits this many free pages, or with `None` no longer any. Under the zone's lock.
    pub(crate) fn set_awaited(&self, pages: Option<u64>) {
        self.counters.awaited.store(pages.unwrap_or(NOT_AWAITED), Ordering::Relaxed);
    }

    /// Whether any number of free pages is awaited. Under the zone's lock.
    pub(crate) fn is_awaited(&self) -> bool {
        self.counters.awaited.load(Ordering::Relaxed) != NOT_AWAITED
    }

    /// NR_FREE_PAGES, in pages.
    pub fn free_pages(&self) -> u64 {
        self.counters.free.load(Ordering::Relaxed)
    }

    /// NR_FREE_CMA_PAGES, in pages.
    pub fn free_cma_pages(&self) -> u64 {
        self.counters.free_cma.load(Ordering::Relaxed)
    }

    /// Pages that the allocator has of this zone, free or not.
    pub fn managed_pages(&self) -> u64 {
        self.managed.load(Ordering::Relaxed)
    }

    /// How full each CPU's lists of the zone are, by CPU.
    pub fn pcp_sizes(&self) -> impl Iterator<Item = PcpSizes> + '_ {
        self.pcp.iter().map(|lists| lists.lock().sizes())
    }

    /// Pageblocks that are isolated now.
    pub fn isolated_blocks(&self) -> u64 {
        self.isolated_blocks.load(Ordering::Relaxed)
    }

    /// How often all per-CPU lists of the zone were drained.
    pub fn drains(&self) -> u64 {
        self.drains.load(Ordering::Relaxed)
    }

    /// The NUMA node.
    pub fn node(&self) -> u8 {
        self.node
    }

    /// What it may hold.
    pub fn kind(&self) -> ZoneType {
        self.kind
    }

    /// The marks that hold now.
    pub fn watermarks(&self) -> Watermarks {
        let [min, low, high] = self.watermarks.each_ref().map(|mark| mark.load(Ordering::Relaxed));
        Watermarks { min, low, high }
    }

    pub(crate) fn set_watermarks(&self, marks: Watermarks, lowmem_reserve: u64) {
        let Watermarks { min, low, high } = marks;
        for (mark, pages) in self.watermarks.iter().zip([min, low, high]) {
            mark.store(pages, Ordering::Relaxed);
        }
        self.lowmem_reserve.store(lowmem_reserve, Ordering::Relaxed);
    }

    /// Sets the sizes of the per-CPU lists, which follow from the zone's size and low watermark.
    pub(crate) fn size_lists(&self, kernel: (&Geometry, bool)) {
        let (managed, low) = (self.managed_pages(), self.watermarks().low);
        for pcp in &self.pcp {
            pcp.lock().set_size(kernel, managed, low, self.pcp.len() as u64);
        }
    }

    /// Pages above a mark that an allocation leaves in the zone, if a higher zone of the node could
    /// serve it.
    pub(crate) fn reserve(&self, movable: bool) -> u64 {
        if movable { self.lowmem_reserve.load(Ordering::Relaxed) } else { 0 }
    }

    /// Whether an allocation of `order` may go on without looking at a lower mark: it would leave
    /// more than the high watermark. If not, the per-CPU lists hold less from now on.
    pub(crate) fn is_above_high(&self, order: u8, movable: bool) -> bool {
        if self.is_below_high() {
            return false;
        }
        let above = self.watermark_ok(order, self.high() + self.reserve(movable), movable);
        if !above {
            self.below_high.store(true, Ordering::Relaxed);
        }
        above
    }

    /// Whether the zone was below its high watermark, as far as allocations and frees have looked.
    pub(crate) fn is_below_high(&self) -> bool {
        self.below_high.load(Ordering::Relaxed)
    }

    /// Looks whether enough was freed that the zone is above its high watermark.
    pub(crate) fn leave_below_high(&self) {
        if self.is_below_high() && self.watermark_ok(0, self.high() + self.reserve(true), false) {
            self.below_high.store(false, Ordering::Relaxed);
        }
    }

    fn high(&self) -> u64 {
        self.watermarks[2].load(Ordering::Relaxed)
    }

    /// Whether an allocation of `order` would leave more than `mark` pages free
    /// (`zone_watermark_ok`), whatever the zone reserves; pages of the CMA reserve count for an allocation that may use them.
    pub fn watermark_ok(&self, order: u8, mark: u64, may_use_cma: bool) -> bool {
        let unusable = if may_use_cma { 0 } else { self.free_cma_pages() };
        let free = self.free_pages().saturating_sub(unusable);
        free.saturating_sub((1 << order) - 1) > mark
    }
}

impl super::Mm {
    /// How many CPUs have lists of their own.
    pub fn cpus(&self) -> usize {
        self.zones.first().map_or(0, |zone| zone.pcp.len())
    }
}
