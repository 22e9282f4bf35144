// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames with a reference count, and those that mirror them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::reclaim::Reclaim;
use crate::sync::Plain;

/// A frame. Each is used once: a frame that was freed is not handed out again, so that a late use shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageId(pub usize);

/// What is wrong with a free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A secondary MMU still maps the page that is freed, or maps it afterwards.
    FreedWhileMapped {
        /// The page.
        page: PageId,
        /// The number of the subscription.
        subscription: usize,
    },
    /// A reference is dropped that is not there.
    FreedTwice(PageId),
}

/// All frames. Nothing here but a free is a scheduling point.
#[derive(Debug)]
pub struct Pages {
    table: Plain<Table>,
    reclaim: Arc<Reclaim>,
}

#[derive(Debug, Default)]
struct Table {
    frames: Vec<Frame>,
    freed: u64,
    faults: Vec<Fault>,
}

#[derive(Debug)]
struct Frame {
    references: u32,
    /// Subscriptions whose secondary MMU maps it. They have no reference.
    mapped: Vec<usize>,
}

impl Pages {
    /// Without a frame. What is freed is free in `reclaim`.
    pub fn new(reclaim: Arc<Reclaim>) -> Self {
        Self { table: Plain::new(Table::default()), reclaim }
    }

    /// A frame with one reference, that of its mapping.
    pub fn add(&self) -> PageId {
        let mut table = self.table.lock();
        table.frames.push(Frame { references: 1, mapped: Vec::new() });
        PageId(table.frames.len() - 1)
    }

    /// Takes another reference (`get_page`), unless there is none any more.
    pub fn get(&self, page: PageId) -> bool {
        let mut table = self.table.lock();
        let references = &mut table.frames[page.0].references;
        let is_there = *references > 0;
        *references += u32::from(is_there);
        is_there
    }

    /// Drops a reference (`put_page`); the last one frees the page. Returns whether it was the last.
    pub fn put(&self, page: PageId) -> bool {
        let is_freed = self.table.lock().put(page);
        if is_freed {
            self.reclaim.freed();
        }
        is_freed
    }

    /// The secondary MMU of `subscription` maps `page`, which its caller has a reference to.
    pub fn map_secondary(&self, page: PageId, subscription: usize) {
        let mut table = self.table.lock();
        let frame = &mut table.frames[page.0];
        frame.mapped.push(subscription);
        if frame.references == 0 {
            table.faults.push(Fault::FreedWhileMapped { page, subscription });
        }
    }

    /// It no longer does.
    pub fn unmap_secondary(&self, page: PageId, subscription: usize) {
        let mut table = self.table.lock();
        table.frames[page.0].mapped.retain(|&mapped| mapped != subscription);
    }

    /// Pages freed so far.
    pub fn freed(&self) -> u64 {
        self.table.lock().freed
    }

    /// Whether `page` is freed.
    pub fn is_freed(&self, page: PageId) -> bool {
        self.table.lock().frames[page.0].references == 0
    }

    /// Every fault so far.
    pub fn faults(&self) -> Vec<Fault> {
        self.table.lock().faults.clone()
    }
}

impl Table {
    fn put(&mut self, page: PageId) -> bool {
        let frame = &mut self.frames[page.0];
        let Some(left) = frame.references.checked_sub(1) else {
            self.faults.push(Fault::FreedTwice(page));
            return false;
        };
        frame.references = left;
        if left > 0 {
            return false;
        }
        let late = |&subscription: &usize| Fault::FreedWhileMapped { page, subscription };
        self.faults.extend(frame.mapped.iter().map(late));
        self.freed += 1;
        true
    }
}
