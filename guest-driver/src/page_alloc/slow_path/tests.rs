// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::page_alloc::{Geometry, Layout, MigrateType, MovePages, NodeMask, ZoneLayout, ZoneType};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{AtomicU64, Ordering};

/// Two nodes with a section each.
fn two_nodes() -> Mm {
    let zone = |node: u8| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: core::iter::once(usize::from(node)..usize::from(node) + 1).collect(),
    };
    let zones = vec![zone(0), zone(1)];
    Mm::new(&Layout { zones, ..Layout::flat(Geometry::TINY, 1, 2) })
}

/// Nodes that change at one look, and what the slow path has asked.
struct Changes {
    nodes: NodeMask,
    at: Option<(Look, NodeMask)>,
    looks: RefCell<Vec<Look>>,
}

impl Changes {
    fn only(node: u8) -> Self {
        Self { nodes: NodeMask::of(node), at: None, looks: RefCell::default() }
    }
}

impl Constraint for Changes {
    fn allows(&self, node: u8) -> bool {
        self.nodes.contains(node)
    }

    fn in_nodemask(&self, node: u8) -> bool {
        self.nodes.contains(node)
    }

    fn must_restart(&mut self, at: Look) -> bool {
        self.looks.borrow_mut().push(at);
        let change = self.at.filter(|&(look, _)| look == at);
        if let Some((_, nodes)) = change {
            (self.nodes, self.at) = (nodes, None);
        }
        change.is_some()
    }
}

/// Takes everything of a node.
fn fill(mm: &Mm, node: u8) -> Vec<Pfn> {
    let pages = || mm.alloc_constrained(0, AllocRequest::movable(0), &mut Changes::only(node));
    core::iter::from_fn(|| pages().ok()).collect()
}

#[test]
fn constraint_keeps_pages_to_its_nodes() {
    let mm = two_nodes();
    let taken = fill(&mm, 1);
    assert!(!taken.is_empty() && taken.iter().all(|&pfn| mm.zone_of(pfn) == Some(ZoneId(1))));
    assert!(mm.alloc(0, AllocRequest::movable(0)).is_ok());
}

#[test]
fn slow_path_looks_in_the_order_of_linux() {
    let mm = two_nodes();
    fill(&mm, 0);
    let mut constraint = Changes::only(0);
    let error = mm.alloc_constrained(0, AllocRequest::movable(0), &mut constraint).unwrap_err();
    assert_eq!(error, AllocError::OutOfMemory);
    let looks = [Look::TopOfRetry, Look::AfterReclaim, Look::BeforeOom];
    assert_eq!(*constraint.looks.borrow(), looks);
}

#[test]
fn change_before_the_oom_killer_is_seen() {
    let mm = two_nodes();
    fill(&mm, 0);
    let at = Some((Look::BeforeOom, NodeMask::of(1)));
    let mut constraint = Changes { at, ..Changes::only(0) };
    let page = mm.alloc_constrained(0, AllocRequest::movable(0), &mut constraint).unwrap();
    assert_eq!(mm.zone_of(page), Some(ZoneId(1)));
}

#[test]
fn atomic_request_takes_most_of_the_reserve() {
    let mm = Mm::new(&Layout::flat(Geometry::LINUX, 1, 1));
    let zone = mm.zone(ZoneId(0));
    fill(&mm, 0);
    assert_eq!((zone.free_pages(), zone.watermarks().min), (32, 32));
    let atomic = AllocRequest { atomic: true, ..AllocRequest::movable(0) };
    // What its CPU's lists hold is no longer free, so that a page is taken by itself.
    while zone.watermark_ok(0, 12, true) {
        mm.alloc(0, atomic).unwrap();
        mm.drain_all(ZoneId(0));
    }
    assert_eq!((mm.alloc(0, atomic), zone.free_pages()), (Err(AllocError::Failed), 12));
}

#[test]
fn atomic_request_takes_from_any_node() {
    let mm = two_nodes();
    fill(&mm, 0);
    let atomic = AllocRequest { atomic: true, ..AllocRequest::movable(0) };
    let mut constraint = Changes::only(0);
    let page = mm.alloc_constrained(0, atomic, &mut constraint).unwrap();
    assert_eq!(mm.zone_of(page), Some(ZoneId(1)));
    fill(&mm, 1);
    let error = mm.alloc_constrained(0, atomic, &mut constraint).unwrap_err();
    let last = constraint.looks.borrow().last().copied();
    assert_eq!((error, last), (AllocError::Failed, Some(Look::NoPage)));
}

#[test]
fn request_without_a_zone_fails() {
    let mm = two_nodes();
    let request = AllocRequest { migratetype: MigrateType::Unmovable, ..AllocRequest::movable(0) };
    assert_eq!(mm.alloc(0, request), Err(AllocError::Failed));
    let nowhere = mm.alloc_constrained(0, AllocRequest::movable(0), &mut Changes::only(9));
    assert_eq!(nowhere, Err(AllocError::Failed));
}

/// Pages that can be given up.
struct Cache {
    pages: crate::sync::Lock<Vec<Pfn>>,
    asked: AtomicU64,
}

impl Reclaim for Cache {
    fn reclaim(&self, mm: &Mm, cpu: usize, _: AllocRequest, allowed: &dyn Fn(u8) -> bool) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut pages = self.pages.lock();
        let node = |pfn| mm.zone_of(pfn).map(|zone| mm.zone(zone).node());
        let Some(at) = pages.iter().position(|&pfn| node(pfn).is_some_and(allowed)) else {
            return 0;
        };
        mm.free(cpu, pages.swap_remove(at));
        1
    }

    fn reclaimable(&self, _: ZoneId) -> u64 {
        self.pages.lock().len() as u64
    }
}

#[test]
fn reclaim_frees_pages_of_allowed_nodes() {
    let mm = two_nodes();
    let (own, others) = (fill(&mm, 0), fill(&mm, 1));
    let pages = crate::sync::Lock::new(own.iter().copied().chain(others.iter().copied()).collect());
    let cache = Arc::new(Cache { pages, asked: AtomicU64::new(0) });
    assert!(mm.set_reclaim(cache.clone()).is_ok() && mm.set_reclaim(cache.clone()).is_err());
    for _ in &own {
        let page = mm.alloc_constrained(0, AllocRequest::movable(0), &mut Changes::only(0));
        assert_eq!(mm.zone_of(page.unwrap()), Some(ZoneId(0)));
    }
    assert_eq!(cache.pages.lock().len(), others.len());
    assert!(cache.asked.load(Ordering::Relaxed) >= own.len() as u64);
}

#[test]
fn zone_without_memory_is_in_no_list() {
    struct Nothing;
    impl MovePages for Nothing {
        fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
            false
        }
    }
    let mm = two_nodes();
    let first = |mm: &Mm| {
        let request = AllocRequest::movable(0);
        let mut first = None;
        mm.walk_zonelist(0, request, |zone| {
            first = Some(zone);
            false
        });
        first
    };
    assert_eq!(first(&mm), Some(ZoneId(0)));
    mm.offline_block(0, &Nothing, &|| false).unwrap();
    assert_eq!(first(&mm), Some(ZoneId(1)));
    mm.online_block(0).unwrap();
    assert_eq!(first(&mm), Some(ZoneId(0)));
}
