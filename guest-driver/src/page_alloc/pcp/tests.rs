// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use crate::page_alloc::{
    AllocRequest, FrameState, Geometry, KernelSemantics, Layout, Mm, Pfn, ZoneId,
};
use alloc::vec::Vec;

const G: Geometry = Geometry::LINUX;

/// As `alloc_factor` and `free_count` do: 63, 126, 252 ... pages while only allocating, as many as
/// were freed while only freeing, up to the lists' `high`, which stays where it is.
#[test]
fn one_sided_cpu_moves_larger_batches() {
    let semantics = KernelSemantics { tune_pcp_high: false, ..KernelSemantics::V6_19 };
    let mm = Mm::new(&Layout { semantics, ..Layout::flat(G, 1, 64) });
    let zone = mm.zone(ZoneId(0));
    let mut taken = Vec::new();
    let (mut moved, mut free) = (Vec::new(), zone.free_pages());
    while taken.len() < 10_000 {
        taken.push(mm.alloc(0, AllocRequest::movable(0)).unwrap());
        if zone.free_pages() != free {
            moved.push(free - zone.free_pages());
            free = zone.free_pages();
        }
    }
    assert_eq!(moved[..6], [63, 126, 252, 504, 1008, 2016]);
    moved.clear();
    free = zone.free_pages();
    for pfn in taken {
        mm.free(0, pfn);
        if zone.free_pages() != free {
            moved.push(zone.free_pages() - free);
            free = zone.free_pages();
        }
    }
    assert!(moved.is_sorted(), "{moved:?}");
    assert_eq!(moved.last(), Some(&2016));
    mm.validate().unwrap();
}

/// A zone of 2 GiB with two CPUs: what one allocates and frees stays on its lists, up to a
/// sixteenth of the zone, until its statistics have been updated for a while.
#[test]
fn freed_pages_stay_with_the_cpu_until_it_rests() {
    const PAGES: usize = 20_000;
    let mm = Mm::new(&Layout::flat(G, 2, 16));
    let zone = mm.zone(ZoneId(0));
    let all = zone.free_pages();
    let churn = || {
        let taken: Vec<Pfn> =
            (0..PAGES).map(|_| mm.alloc(0, AllocRequest::movable(0)).unwrap()).collect();
        taken.into_iter().for_each(|pfn| mm.free(0, pfn));
        all - zone.free_pages()
    };
    let kept = churn();
    assert!(kept >= PAGES as u64, "{kept} pages");
    assert_eq!(churn(), kept, "nothing needs the zone's lock any more");
    let left: Vec<u64> =
        core::iter::from_fn(|| mm.update_vmstat(0).then(|| all - zone.free_pages()))
            .take(100)
            .collect();
    // At most 32 batches of 63 at once, and an eighth of what may stay.
    let steps = core::iter::once(kept).chain(left.iter().copied()).collect::<Vec<_>>();
    assert!(steps.windows(2).all(|step| step[0] - step[1] <= 32 * 63 + 63), "{left:?}");
    assert!(left.len() < 60, "{left:?}");
    let low = zone.watermarks().low;
    assert!(all - zone.free_pages() <= low / 2, "{left:?}");
    assert!(!mm.update_vmstat(0) && !mm.update_vmstat(1));
    mm.drain_all(ZoneId(0));
    assert_eq!(zone.free_pages(), all);
    mm.validate().unwrap();
}

/// Below its high watermark a zone gets back what a CPU frees beyond the least.
#[test]
fn cpu_keeps_less_of_a_zone_below_its_high_watermark() {
    let mm = Mm::new(&Layout::flat(G, 1, 16));
    let zone = mm.zone(ZoneId(0));
    let marks = zone.watermarks();
    let mut taken = Vec::new();
    while zone.managed_pages() - taken.len() as u64 > marks.low + 10 {
        taken.push(mm.alloc(0, AllocRequest::movable(0)).unwrap());
    }
    mm.drain_all(ZoneId(0));
    assert!(!zone.is_above_high(0, true) && zone.is_below_high());
    while zone.is_below_high() {
        mm.free(0, taken.pop().unwrap());
    }
    assert!(zone.free_pages() > marks.high);
    let kept = u64::from(zone.pcp[0].lock().pages());
    assert!(kept <= marks.low, "{kept} pages");
    let freed = taken.into_iter().map(|pfn| {
        mm.free(0, pfn);
        zone.pcp[0].lock().pages()
    });
    let high = 32 * 63 + 63;
    assert_eq!(freed.max(), Some(high - 1), "as many as are freed at once, and a batch");
}

fn is_on_a_list(mm: &Mm, pfn: u32) -> bool {
    matches!(mm.state(Pfn(pfn)), FrameState::Pcp { .. })
}

#[test]
fn lists_that_are_off_are_not_filled() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    mm.pcp_disable(ZoneId(0));
    mm.alloc(0, AllocRequest::movable(0)).unwrap();
    assert!(!(0..32768).any(|pfn| is_on_a_list(&mm, pfn)));
    mm.pcp_enable(ZoneId(0));
    mm.alloc(0, AllocRequest::movable(0)).unwrap();
    assert!((0..32768).any(|pfn| is_on_a_list(&mm, pfn)));
}

#[test]
fn pages_that_leave_the_lists_look_like_no_block() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let pages: Vec<Pfn> =
        (0..1024).map(|_| mm.alloc(0, AllocRequest::movable(0)).unwrap()).collect();
    pages.into_iter().for_each(|pfn| mm.free(0, pfn));
    mm.drain_all(ZoneId(0));
    assert!(!(0..32768).any(|pfn| is_on_a_list(&mm, pfn)));
}

/// A share of the low watermark and one of an eighth of the zone, as `/proc/zoneinfo` of a guest with two
/// CPUs had them (`cargo xtask lab race agreement`). Before 6.7 the first was all.
#[test]
fn list_limits_follow_watermark_and_zone() {
    for (tunes, most) in [(true, 15_104), (false, 6922)] {
        let semantics = KernelSemantics { tune_pcp_high: tunes, ..KernelSemantics::V6_19 };
        let geometry = Geometry { section_order: 10, ..G };
        let normal = |sections| crate::page_alloc::ZoneLayout {
            node: 0,
            kind: crate::page_alloc::ZoneType::Normal,
            sections: [sections].into(),
        };
        let zones = [normal(4..240), normal(0..4)].into();
        let mm = Mm::new(&Layout { semantics, zones, ..Layout::flat(geometry, 2, 240) });
        let zone = mm.zone(ZoneId(0));
        assert_eq!(zone.managed_pages(), 241_664);
        let sizes = zone.pcp_sizes().next().unwrap();
        assert_eq!((sizes.high_min, sizes.high_max, sizes.batch), (6922, most, 63));
    }
}
