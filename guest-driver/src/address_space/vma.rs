// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VMAs by kind, with a page table each.

use alloc::vec::Vec;
use core::ops::Range;

use super::pages::{PageId, Pages};
use crate::sync::{AtomicBool, Lock, Ordering};

/// What a VMA maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmaKind {
    /// Anonymous memory, or a private mapping of a file.
    Private,
    /// A shared mapping: its pages belong to the file (`VM_SHARED`).
    Shared,
    /// Huge pages of a pool (`VM_HUGETLB`).
    Hugetlb,
    /// Frames without a `struct page` (`VM_PFNMAP`).
    PfnMap,
}

/// A VMA that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmaSetup {
    /// Virtual page numbers, all of them resident.
    pub range: Range<u64>,
    /// What it maps.
    pub kind: VmaKind,
    /// `mlock` keeps it resident (`VM_LOCKED`).
    pub locked: bool,
}

impl VmaSetup {
    /// Private memory that is not locked.
    pub fn private(range: Range<u64>) -> Self {
        Self { range, kind: VmaKind::Private, locked: false }
    }
}

/// A VMA and its page table.
#[derive(Debug)]
pub struct Vma {
    setup: VmaSetup,
    table: Lock<Vec<Option<PageId>>>,
    /// The page table is freed (`free_pgtables`).
    freed: AtomicBool,
}

impl Vma {
    /// A VMA whose pages are resident.
    pub(super) fn new(setup: VmaSetup, pages: &Pages) -> Self {
        let table = Lock::new(setup.range.clone().map(|_| Some(pages.add())).collect());
        Self { setup, table, freed: AtomicBool::new(false) }
    }

    /// Its virtual page numbers.
    pub fn range(&self) -> &Range<u64> {
        &self.setup.range
    }

    /// What it maps.
    pub fn kind(&self) -> VmaKind {
        self.setup.kind
    }

    /// Whether `mlock` keeps it resident.
    pub fn is_locked(&self) -> bool {
        self.setup.locked
    }

    /// Pages that are resident.
    pub fn resident(&self) -> u64 {
        self.table.lock().iter().flatten().count() as u64
    }

    fn index(&self, page: u64) -> Option<usize> {
        let offset = page.checked_sub(self.setup.range.start)?;
        usize::try_from(offset).ok().filter(|_| page < self.setup.range.end)
    }

    /// Looks the page up and takes a reference.
    pub(super) fn get(&self, page: u64, pages: &Pages) -> Option<PageId> {
        let index = self.index(page)?;
        let table = self.table.lock();
        table[index].filter(|&page| pages.get(page))
    }

    /// Clears the entry of `page`, with the page table's lock held (`zap_pte_range`). The one that cleared an
    /// entry drops its reference.
    ///
    /// # Panics
    /// With `use after free: ` if the page table is freed.
    pub fn zap(&self, page: u64) -> Option<PageId> {
        self.assert_table(page);
        let index = self.index(page)?;
        self.table.lock()[index].take()
    }

    /// The same in two steps without the lock in between: a mistake.
    pub fn zap_unlocked(&self, page: u64) -> Option<PageId> {
        self.assert_table(page);
        let index = self.index(page)?;
        let entry = self.table.lock()[index];
        self.table.lock()[index] = None;
        entry
    }

    fn assert_table(&self, page: u64) {
        let is_freed = self.freed.load(Ordering::SeqCst);
        assert!(!is_freed, "use after free: the page table of page {page} is walked");
    }

    /// Frees the page table.
    pub(super) fn free_table(&self) {
        self.freed.store(true, Ordering::SeqCst);
    }
}
