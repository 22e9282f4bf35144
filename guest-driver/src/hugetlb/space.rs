// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An address space that maps the file.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;

use super::table::TableRef;
use crate::sync::Plain;
use crate::waits::Rwsem;

/// A mapping of the whole file.
#[derive(Debug)]
pub(super) struct Vma {
    /// The address space.
    pub(super) space: usize,
    /// `hugetlb_vma_lock`. It outlives the VMA while a task waits for it.
    pub(super) lock: Rwsem,
    /// It covers whole page tables and is not being unmapped, so that it may share.
    pub(super) shareable: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Space {
    pub(super) mmap_lock: Rwsem,
    vma: Plain<Option<Arc<Vma>>>,
    /// The upper level: a page table for each piece of the file.
    puds: Plain<Vec<Option<TableRef>>>,
}

impl Space {
    pub(super) fn new(pieces: usize, mmap_lock: Rwsem) -> Self {
        Self { mmap_lock, vma: Plain::new(None), puds: Plain::new(vec![None; pieces]) }
    }

    pub(super) fn vma(&self) -> Option<Arc<Vma>> {
        self.vma.lock().clone()
    }

    pub(super) fn set_vma(&self, vma: Option<Arc<Vma>>) {
        *self.vma.lock() = vma;
    }

    pub(super) fn pud(&self, piece: usize) -> Option<TableRef> {
        self.puds.lock()[piece]
    }

    /// Installs `table` unless there is one (`page_table_lock`).
    pub(super) fn populate(&self, piece: usize, table: TableRef) -> bool {
        let pud = &mut self.puds.lock()[piece];
        let none = pud.is_none();
        if none {
            *pud = Some(table);
        }
        none
    }

    pub(super) fn clear(&self, piece: usize) -> Option<TableRef> {
        self.puds.lock()[piece].take()
    }
}
