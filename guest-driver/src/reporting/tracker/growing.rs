// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tracker that grows with the memory.

use alloc::sync::Arc;

use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};
use crate::sync::{AtomicUsize, Guard, Lock, Ordering};

/// The sections that a tracker has room for.
#[derive(Debug)]
pub(in super::super) struct Room {
    sections: AtomicUsize,
    /// A pass has it while it walks the marks, so that they stay where they are.
    walk: Lock<()>,
}

impl Room {
    /// For the sections that are online now.
    pub(in super::super) fn new(mm: &Mm) -> Self {
        let last = (0..mm.section_count()).rfind(|&section| mm.is_online(section));
        let sections = AtomicUsize::new(last.map_or(0, |last| last + 1));
        Self { sections, walk: Lock::new(()) }
    }

    /// Keeps the tracker as it is while the guard lives.
    pub(in super::super) fn walk(&self) -> Guard<'_, ()> {
        self.walk.lock()
    }

    fn has(&self, section: usize) -> bool {
        section < self.sections.load(Ordering::Acquire)
    }

    fn grow(&self, section: usize) {
        if self.has(section) {
            return;
        }
        let _no_pass = self.walk();
        self.sections.store(section + 1, Ordering::Release);
    }
}

/// A tracker with so much room: what lies beyond is not marked.
pub(in super::super) struct Growing {
    pub(in super::super) tracker: Arc<dyn FreeHook>,
    pub(in super::super) room: Arc<Room>,
    pub(in super::super) section_order: u8,
}

impl Growing {
    fn has(&self, head: Pfn) -> bool {
        self.room.has((head.0 >> self.section_order) as usize)
    }
}

impl FreeHook for Growing {
    fn order(&self) -> u8 {
        self.tracker.order()
    }

    fn listens_before(&self) -> bool {
        self.tracker.listens_before()
    }

    fn before_insert(&self, head: Pfn, order: u8) {
        self.tracker.before_insert(head, order);
    }

    fn after_insert(&self, head: Pfn, order: u8, freed: PfnRange) {
        if self.has(head) {
            self.tracker.after_insert(head, order, freed);
        }
    }

    fn moved(&self, head: Pfn, order: u8) {
        self.tracker.moved(head, order);
    }

    fn merged(&self, head: Pfn, order: u8) {
        if self.has(head) {
            self.tracker.merged(head, order);
        }
    }

    fn zone_recovered(&self) {
        self.tracker.zone_recovered();
    }

    fn section_going_online(&self, section: usize) {
        self.room.grow(section);
    }

    fn section_online(&self, section: usize) {
        if self.room.has(section) {
            self.tracker.section_online(section);
        }
    }

    fn section_offline(&self, section: usize) {
        self.tracker.section_offline(section);
    }

    fn section_removed(&self, section: usize) {
        self.tracker.section_removed(section);
    }
}
