// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A zone's free lists.

use crate::page_alloc::geometry::{MigrateType, Pfn};

/// The most orders that any geometry has.
const ORDERS: usize = 11;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct List {
    pub(super) head: Option<Pfn>,
    pub(super) tail: Option<Pfn>,
}

/// A zone's free blocks.
#[derive(Debug)]
pub(crate) struct FreeArea {
    pub(super) lists: [[List; MigrateType::COUNT]; ORDERS],
    /// Free blocks of each order, of every migratetype, isolated ones included.
    pub(crate) nr_free: [u64; ORDERS],
}

impl FreeArea {
    pub(crate) fn new() -> Self {
        Self { lists: Default::default(), nr_free: [0; ORDERS] }
    }

    /// First block of a list.
    pub(crate) fn first(&self, order: u8, migratetype: MigrateType) -> Option<Pfn> {
        self.lists[usize::from(order)][migratetype as usize].head
    }
}
