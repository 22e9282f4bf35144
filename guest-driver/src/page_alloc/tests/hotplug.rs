// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that comes and goes.

use super::*;

#[test]
fn used_memory_block_goes_offline_and_online() {
    let mm = Mm::new(&Layout::flat(G, 2, 4));
    for _ in 0..100 {
        mm.alloc(0, AllocRequest::movable(0)).unwrap();
    }
    let pfn = mm.alloc(0, AllocRequest::movable(5)).unwrap();
    let of = (pfn.0 >> G.section_order) as usize;
    mm.offline_block(of, &Anywhere, &never).unwrap();
    mm.validate().unwrap();
    assert!(!mm.is_online(of));
    assert_eq!(mm.zone(ZoneId(0)).managed_pages(), 3 * 32768);
    assert_eq!(mm.offline_block(of, &Anywhere, &never), Err(OfflineError::Invalid));
    mm.online_block(of).unwrap();
    assert_eq!(mm.online_block(of), Err(OfflineError::Invalid));
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).managed_pages(), 4 * 32768);
}

#[test]
fn offlining_answers_as_linux_does() {
    let mm = Mm::new(&Layout::flat(G, 1, 2));
    assert_eq!(mm.offline_block(7, &Nobody, &never), Err(OfflineError::Invalid));
    mm.start_isolate_page_range(block(0), IsolateMode::Report).unwrap();
    assert_eq!(mm.offline_block(0, &Nobody, &never), Err(OfflineError::Busy));
    mm.undo_isolate_page_range(block(0), None);
    // In use, and not moved: until a signal comes.
    let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap();
    let of = (pfn.0 >> G.section_order) as usize;
    let calls = core::cell::Cell::new(0);
    let signal = || calls.replace(calls.get() + 1) == 3;
    assert_eq!(mm.offline_block(of, &Nobody, &signal), Err(OfflineError::Interrupted));
    mm.validate().unwrap();
    mm.free(0, pfn);
    mm.offline_block(of, &Nobody, &never).unwrap();
}

#[test]
fn memory_can_be_added_later() {
    let layout = Layout { sections: 8, ..Layout::flat(G, 1, 1) };
    let mm = Mm::new(&layout);
    assert_eq!(mm.online_block(5), Err(OfflineError::Invalid));
    mm.add_section(5, ZoneId(0));
    mm.online_block(5).unwrap();
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), 2 * 32768);
    assert_eq!(mm.state(Pfn(2 * 32768)), FrameState::Absent);
}

/// Hears what comes online, and looks at it in each call.
#[derive(Default)]
struct Listener {
    mm: std::sync::OnceLock<std::sync::Weak<Mm>>,
    freed: core::sync::atomic::AtomicU64,
    going_online: core::sync::atomic::AtomicU64,
    online: core::sync::atomic::AtomicU64,
}

impl Listener {
    fn mm(&self) -> Arc<Mm> {
        self.mm.get().and_then(std::sync::Weak::upgrade).expect("it is set and alive")
    }
}

impl FreeHook for Listener {
    fn order(&self) -> u8 {
        10
    }

    fn after_insert(&self, head: Pfn, _order: u8, _freed: PfnRange) {
        assert!(self.mm().is_isolated(head) && !self.mm().is_online(1));
        assert_eq!(self.going_online.load(Ordering::Relaxed), 1);
        assert_eq!(self.mm().zone(ZoneId(0)).free_pages(), 32768, "it cannot be allocated yet");
        self.freed.fetch_add(1024, Ordering::Relaxed);
    }

    fn section_going_online(&self, section: usize) {
        assert_eq!(self.freed.load(Ordering::Relaxed), 0);
        assert_eq!(self.mm().state(G.section_range(section).start), FrameState::Absent);
        self.going_online.fetch_add(1, Ordering::Relaxed);
    }

    fn section_online(&self, section: usize) {
        assert!(self.mm().is_online(section));
        assert_eq!(self.mm().zone(ZoneId(0)).free_pages(), 2 * 32768);
        assert_eq!(self.mm().zone(ZoneId(0)).isolated_blocks(), 0);
        self.online.fetch_add(1, Ordering::Relaxed);
    }

    fn section_offline(&self, _section: usize) {}
}

#[test]
fn memory_is_isolated_until_it_is_online() {
    let mm = Arc::new(Mm::new(&Layout { sections: 2, ..Layout::flat(G, 1, 1) }));
    let hook = Arc::new(Listener::default());
    hook.mm.set(Arc::downgrade(&mm)).unwrap();
    assert!(mm.set_free_hook(Arc::clone(&hook) as _).is_ok());
    mm.add_section(1, ZoneId(0));
    mm.online_block(1).unwrap();
    let [freed, online] = [&hook.freed, &hook.online].map(|count| count.load(Ordering::Relaxed));
    assert_eq!((freed, online), (32768, 1));
    mm.validate().unwrap();
    // It is last on its list.
    let first = mm.alloc(0, AllocRequest::movable(10)).unwrap();
    assert_eq!(first, Pfn(0));
}

#[test]
fn kernel_5_9_onlines_without_isolation() {
    let layout = Layout { sections: 2, semantics: KernelSemantics::V5_9, ..Layout::flat(G, 1, 1) };
    let mm = Mm::new(&layout);
    mm.add_section(1, ZoneId(0));
    mm.online_block(1).unwrap();
    mm.validate().unwrap();
    // The last that was freed is the first of its list.
    assert_eq!(mm.alloc(0, AllocRequest::movable(10)), Ok(Pfn(2 * 32768 - 1024)));
}

/// How often the lists are drained while a page stays in use for three tries.
fn drains_while_offlining(semantics: KernelSemantics) -> u64 {
    let mm = old(semantics, 2);
    let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap_or_default();
    let isolated = mm.zone(ZoneId(0)).drains();
    let calls = core::cell::Cell::new(0);
    let signal = || calls.replace(calls.get() + 1) == 3;
    let of = (pfn.0 >> G.section_order) as usize;
    assert_eq!(mm.offline_block(of, &Nobody, &signal), Err(OfflineError::Interrupted));
    mm.zone(ZoneId(0)).drains() - isolated
}

#[test]
fn offlining_drains_once_since_lists_are_turned_off() {
    assert_eq!(drains_while_offlining(KernelSemantics::V6_19), 1);
    // Those of its 64 pageblocks come first.
    assert_eq!(drains_while_offlining(KernelSemantics::V5_9), 64 + 3);
    assert_eq!(drains_while_offlining(KernelSemantics::V5_8), 64);
}

#[test]
fn disabled_per_cpu_lists_stay_empty() {
    let mm = Mm::new(&Layout::flat(G, 1, 2));
    let pfn = mm.alloc(0, AllocRequest::movable(0)).unwrap();
    mm.pcp_disable(ZoneId(0));
    let free = mm.zone(ZoneId(0)).free_pages();
    let another = mm.alloc(0, AllocRequest::movable(0)).unwrap();
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), free - 1);
    [pfn, another].into_iter().for_each(|pfn| mm.free(0, pfn));
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), 2 * 32768);
    mm.pcp_enable(ZoneId(0));
    mm.validate().unwrap();
}
