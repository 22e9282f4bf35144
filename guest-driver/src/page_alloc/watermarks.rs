// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The watermarks of all zones, and what a zone reserves from requests that others can serve.

use super::Mm;
use super::geometry::{Geometry, MigrateType};
use super::zone::{Watermarks, Zone, ZoneType};

/// What part of the higher zones of its node a normal zone reserves
/// (`sysctl_lowmem_reserve_ratio`).
const LOWMEM_RESERVE_RATIO: u64 = 32;
/// The most that `min_free_kbytes` becomes by the size of memory: 256 MiB, in pages.
const MOST_BY_SIZE: u64 = 65536;
/// Pageblocks that khugepaged wants free for each normal zone: two, and one for each pair of types
/// of which one may fall back to the other (`set_recommended_min_free_kbytes`).
const HUGE_PAGE_BLOCKS: u64 = 2 + (MigrateType::PCP_COUNT * MigrateType::PCP_COUNT) as u64;

/// `min_free_kbytes` in pages, for `zones` normal zones with `lowmem` pages together. Linux subtracts
/// what lies below their high watermarks first; the model does not.
fn min_free_pages(geometry: &Geometry, lowmem: u64, zones: u64) -> u64 {
    // 4 * sqrt(kilobytes), in kilobytes (`calculate_min_free_kbytes`).
    let by_size = (lowmem * 64).isqrt() / 4;
    let huge_pages = u64::from(geometry.pageblock_pages()) * zones * HUGE_PAGE_BLOCKS;
    let by_size = by_size.clamp(geometry.min_watermark.0, MOST_BY_SIZE);
    by_size.max(huge_pages.min(lowmem / 20))
}

/// The watermarks of a zone of `managed` pages (`__setup_per_zone_wmarks`). `share` is its share of
/// `min_free_kbytes`, in pages, as if it were a normal zone; none where there is no normal zone, as in
/// no Linux guest.
fn marks(geometry: &Geometry, kind: ZoneType, managed: u64, share: Option<u64>) -> Watermarks {
    let (least, most) = geometry.min_watermark;
    let of_movable = (managed / 1024).clamp(least, most);
    let share = share.unwrap_or(of_movable);
    let min = match kind {
        ZoneType::Normal => share,
        ZoneType::Movable => of_movable,
    };
    // watermark_scale_factor of 10, in parts of 10000.
    let gap = (share / 4).max(managed / 1000);
    Watermarks { min, low: min + gap, high: min + 2 * gap }
}

impl Mm {
    /// Sets the watermarks and reserves of all zones, and the sizes of the per-CPU lists that follow
    /// from them (`init_per_zone_wmark_min`): each depends on what the other zones hold.
    pub(crate) fn set_watermarks(&self) {
        let of = |kind| self.zones.iter().filter(move |zone| zone.kind == kind);
        let lowmem = of(ZoneType::Normal).map(Zone::managed_pages).sum();
        let populated = of(ZoneType::Normal).filter(|zone| zone.managed_pages() > 0).count();
        let min_free = min_free_pages(&self.geometry, lowmem, populated as u64);
        for zone in &self.zones {
            let managed = zone.managed_pages();
            let share = (min_free * managed).checked_div(lowmem);
            let reserve = match zone.kind {
                ZoneType::Normal => {
                    let higher = of(ZoneType::Movable).filter(|higher| higher.node == zone.node);
                    higher.map(Zone::managed_pages).sum::<u64>() / LOWMEM_RESERVE_RATIO
                }
                ZoneType::Movable => 0,
            };
            let marks = marks(&self.geometry, zone.kind, managed, share);
            zone.set_watermarks(marks, reserve);
            zone.size_lists((&self.geometry, self.semantics.tune_pcp_high));
        }
        // What was awaited of a zone followed from its old watermarks.
        for zone in &self.zones {
            let _area = zone.lock();
            self.tell_recovered(zone);
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::page_alloc::{AllocRequest, Layout, Pfn, ZoneId, ZoneLayout};
    use alloc::vec;
    use alloc::vec::Vec;

    const G: Geometry = Geometry::LINUX;
    const LOW: ZoneId = ZoneId(0);
    const HIGH: ZoneId = ZoneId(1);

    fn zone(kind: ZoneType, sections: core::ops::Range<usize>) -> ZoneLayout {
        ZoneLayout { node: 0, kind, sections: vec![sections] }
    }

    fn mm(zones: Vec<ZoneLayout>, sections: usize) -> Mm {
        Mm::new(&Layout { zones, ..Layout::flat(G, 1, sections) })
    }

    /// DMA and DMA32 of a 2 GiB guest of Linux 7.3.4 with transparent huge pages.
    #[test]
    fn two_gib_guest_has_the_watermarks_of_linux() {
        let (dma, dma32) = (3_840, 496_500);
        let min_free = min_free_pages(&G, dma + dma32, 2);
        assert_eq!(min_free, 11 * 512 * 2);
        let share = min_free * dma32 / (dma + dma32);
        let marks = marks(&G, ZoneType::Normal, dma32, Some(share));
        assert_eq!(marks, Watermarks { min: 11_177, low: 13_971, high: 16_765 });
    }

    #[test]
    fn min_free_follows_size_or_huge_pages() {
        // 5 % of 128 MiB.
        assert_eq!(min_free_pages(&G, 32_768, 1), 1_638);
        // Of 64 GiB 4 * sqrt(kilobytes) is more: 32 MiB.
        assert_eq!(min_free_pages(&G, 16 << 20, 1), 8_192);
        assert_eq!(min_free_pages(&G, 1 << 32, 1), MOST_BY_SIZE);
        assert_eq!(min_free_pages(&G, 0, 0), 32);
        assert_eq!(min_free_pages(&Geometry::TINY, 48, 1), 13);
    }

    #[test]
    fn normal_zones_share_min_free_and_movable_do_not() {
        let (normal, movable) = (ZoneType::Normal, ZoneType::Movable);
        let mm = mm(vec![zone(normal, 0..4), zone(normal, 4..16), zone(movable, 16..24)], 24);
        let marks = [0, 1, 2].map(|id| mm.zone(ZoneId(id)).watermarks());
        assert_eq!(marks.map(|marks| marks.min), [11_264 / 4, 11_264 / 4 * 3, 128]);
        // The gap above is that of a normal zone of the size.
        assert_eq!(marks.map(|marks| marks.low - marks.min), [704, 2_112, 11_264 / 2 / 4]);
    }

    #[test]
    fn other_zones_marks_follow_hotplug() {
        struct Nothing;
        impl crate::page_alloc::MovePages for Nothing {
            fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
                false
            }
        }
        let normal = ZoneType::Normal;
        let mm = mm(vec![zone(normal, 0..8), zone(normal, 8..16)], 16);
        assert_eq!(mm.zone(LOW).watermarks().min, 11_264 / 2);
        for block in 8..12 {
            mm.offline_block(block, &Nothing, &|| false).unwrap();
        }
        assert_eq!(mm.zone(LOW).watermarks().min, 11_264 / 3 * 2 + 1);
        for block in 12..16 {
            mm.offline_block(block, &Nothing, &|| false).unwrap();
        }
        // One zone is left, and the other has nothing to keep free.
        assert_eq!([LOW, HIGH].map(|id| mm.zone(id).watermarks().min), [5_632, 0]);
        mm.online_block(8).unwrap();
        assert!(mm.zone(LOW).watermarks().min > 5_632);
    }

    /// Movable pages must leave a part of the normal zone, others need not.
    #[test]
    fn normal_zone_is_reserved_from_movable_requests() {
        let reserve = 16 * 32_768 / 32;
        let left = |mt: MigrateType| {
            let zones = vec![zone(ZoneType::Normal, 0..4), zone(ZoneType::Movable, 4..20)];
            let mm = mm(zones, 20);
            let request = AllocRequest { order: 0, migratetype: mt, node: 0, atomic: false };
            while mm.alloc(0, request).is_ok() {}
            assert_eq!(mm.zone(HIGH).watermarks().min, 128);
            mm.zone(LOW).free_pages() - mm.zone(LOW).watermarks().min
        };
        assert_eq!(left(MigrateType::Movable), reserve);
        assert_eq!(left(MigrateType::Unmovable), 0);
    }
}
