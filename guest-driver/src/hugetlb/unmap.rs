// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mapping and unmapping the file: what unshares page tables, and what frees them.

use alloc::format;
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use super::broken::{Broken, Rule};
use super::space::{Space, Vma};
use super::{Flaw, Hugetlb, Locks, Page, Scheme, TableRef, Task, rwsem};
use crate::waits::Held;

/// The locks that unsharing the page tables of one VMA takes.
#[derive(Debug)]
struct Unsharing<'a> {
    // Dropped in this order.
    _tree: Held<'a>,
    _vma: Option<Held<'a>>,
    _sharing: Option<Held<'a>>,
}

impl Hugetlb {
    /// Address space `space` maps the whole file, if it does not yet.
    pub fn mmap(&self, task: &Task, space: usize) {
        let _mmap = self.spaces[space].mmap_lock.write(task.0);
        if self.spaces[space].vma().is_none() {
            self.insert(task, space);
        }
    }

    /// Address space `child`, which has no mapping, becomes a copy of `parent`: it maps the file and shares
    /// the page tables that can be shared. Folios it maps when it touches them.
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn fork(&self, task: &Task, parent: usize, child: usize) -> Result<(), Broken> {
        let _parent = self.spaces[parent].mmap_lock.write(task.0);
        let _child = self.spaces[child].mmap_lock.write(task.0);
        let Some(source) = self.spaces[parent].vma() else { return Ok(()) };
        let vma = self.insert(task, child);
        vma.shareable.store(source.shareable.load(Ordering::SeqCst), Ordering::SeqCst);
        for piece in 0..self.config.pieces {
            let _over = self.over_fault(task);
            let _vma = self.uses(Scheme::VmaLock).then(|| source.lock.read(task.0));
            if self.spaces[parent].pud(piece).is_some() {
                let index = piece * self.config.entries;
                self.huge_pte_alloc(task, &self.spaces[child], &vma, index)?;
            }
        }
        Ok(())
    }

    fn insert(&self, task: &Task, space: usize) -> Arc<Vma> {
        let vma = Arc::new(Vma {
            space,
            lock: rwsem(&self.waits, self.config.locks, format!("the VMA lock of {space}")),
            shareable: AtomicBool::new(true),
        });
        self.spaces[space].set_vma(Some(Arc::clone(&vma)));
        let _tree = self.inode.i_mmap.write(task.0);
        self.inode.tree.lock().push(Arc::clone(&vma));
        vma
    }

    /// Address space `space` unmaps the file and frees its page tables.
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn munmap(&self, task: &Task, space: usize) -> Result<(), Broken> {
        let _mmap = self.spaces[space].mmap_lock.write(task.0);
        self.unmap(task, space)?;
        self.free_page_tables(task, space)
    }

    /// Address space `space` unmaps the file, and maps private pages in its place by the page tables that
    /// it has for itself, until the next [`Hugetlb::munmap`].
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn map_private(&self, task: &Task, space: usize) -> Result<(), Broken> {
        let _mmap = self.spaces[space].mmap_lock.write(task.0);
        self.unmap(task, space)?;
        for table in (0..self.config.pieces).filter_map(|piece| self.spaces[space].pud(piece)) {
            self.step();
            self.tables.with(table, |state| state.entries.fill(Some(Page::Private(space))));
        }
        Ok(())
    }

    /// `unmap_vmas` and `unlink_file_vma`: afterwards no other can share its page tables.
    fn unmap(&self, task: &Task, space: usize) -> Result<(), Broken> {
        let Some(vma) = self.spaces[space].vma() else { return Ok(()) };
        {
            let _locks = self.unsharing(task, &vma);
            self.unmap_range(task, &vma, 0..self.pages())?;
            vma.shareable.store(false, Ordering::SeqCst);
        }
        self.spaces[space].set_vma(None);
        let _tree = self.inode.i_mmap.write(task.0);
        self.inode.tree.lock().retain(|other| !Arc::ptr_eq(other, &vma));
        Ok(())
    }

    /// `free_pgtables`.
    fn free_page_tables(&self, task: &Task, space: usize) -> Result<(), Broken> {
        for piece in 0..self.config.pieces {
            if let Some(table) = self.spaces[space].clear(piece) {
                // The table is freed by RCU, or after an interrupt on every CPU.
                self.await_walkers(task);
                self.tables.put(table.frame)?;
            }
        }
        Ok(())
    }

    /// Address space `space` stops sharing page tables, and may share them again from then on
    /// (`hugetlb_unshare_all_pmds`).
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn unshare(&self, task: &Task, space: usize) -> Result<(), Broken> {
        let _mmap = self.spaces[space].mmap_lock.write(task.0);
        let Some(vma) = self.spaces[space].vma() else { return Ok(()) };
        let _locks = self.unsharing(task, &vma);
        self.unshare_all(task, &vma)
    }

    /// The VMA of address space `space` is split within each page table: it can no longer share
    /// (`__split_vma`).
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn split(&self, task: &Task, space: usize) -> Result<(), Broken> {
        let _mmap = self.spaces[space].mmap_lock.write(task.0);
        let Some(vma) = self.spaces[space].vma() else { return Ok(()) };
        let _locks = self.unsharing(task, &vma);
        vma.shareable.store(false, Ordering::SeqCst);
        if !self.has(Flaw::SplitKeepsSharing) {
            self.unshare_all(task, &vma)?;
        }
        let mut tables = (0..self.config.pieces).filter_map(|piece| self.spaces[space].pud(piece));
        if tables.any(|table| self.shares(table) > 0) {
            let what = "half a VMA shares a page table after a split";
            return Err(Broken::new(Rule::OnlyWholeVmasShare, what));
        }
        Ok(())
    }

    /// VMA lock, then tree, as in `hugetlb_change_protection`.
    fn unsharing<'a>(&'a self, task: &Task, vma: &'a Vma) -> Unsharing<'a> {
        let sharing = self.uses(Scheme::InodeRwsem).then(|| self.inode.sharing.write(task.0));
        let own = self.uses(Scheme::VmaLock).then(|| vma.lock.write(task.0));
        let tree = self.inode.i_mmap.write(task.0);
        Unsharing { _tree: tree, _vma: own, _sharing: sharing }
    }

    fn unshare_all(&self, task: &Task, vma: &Vma) -> Result<(), Broken> {
        let space = &self.spaces[vma.space];
        for piece in 0..self.config.pieces {
            let Some(table) = space.pud(piece) else { continue };
            let held = self.tables.lock(table, task.0)?;
            let unshared = self.huge_pmd_unshare(space, piece, table)?;
            drop(held);
            if unshared && !self.has(Flaw::IgnoresWalkers) {
                self.await_walkers(task);
            }
        }
        Ok(())
    }

    /// Unmaps `range` from `vma`. A page table that others have too is taken from it as a whole. The tree
    /// is locked for writing, and what the scheme has in addition (`__unmap_hugepage_range`).
    pub(super) fn unmap_range(
        &self,
        task: &Task,
        vma: &Vma,
        range: Range<usize>,
    ) -> Result<(), Broken> {
        let space = &self.spaces[vma.space];
        for piece in 0..self.config.pieces {
            let first = piece * self.config.entries;
            let part = range.start.max(first)..range.end.min(first + self.config.entries);
            if part.is_empty() {
                continue;
            }
            let Some(table) = space.pud(piece) else { continue };
            let held = self.tables.lock(table, task.0)?;
            if self.huge_pmd_unshare(space, piece, table)? {
                drop(held);
                if !self.has(Flaw::IgnoresWalkers) {
                    self.await_walkers(task);
                }
                continue;
            }
            for index in part {
                self.clear_entry(table, index);
            }
        }
        Ok(())
    }

    fn clear_entry(&self, table: TableRef, index: usize) {
        let (_, entry) = self.place(index);
        let old = self.tables.with(table, |state| state.entries[entry].take()).flatten();
        if let Some(Page::Folio(folio)) = old {
            self.inode.folios[folio].mapped.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Takes `table` from `space` if others have it too; whether they have. Its lock is held.
    fn huge_pmd_unshare(
        &self,
        space: &Space,
        piece: usize,
        table: TableRef,
    ) -> Result<bool, Broken> {
        if self.shares(table) == 0 {
            return Ok(false);
        }
        self.step();
        space.clear(piece);
        match self.has(Flaw::CountsReferences) {
            true => self.tables.put(table.frame)?,
            false => {
                self.tables.with(table, |state| state.shares -= 1);
            }
        }
        if self.config.locks == Locks::Watched && self.users(table) == 0 {
            let what = "a page table is unshared from the only address space that has it";
            return Err(Broken::new(Rule::ShareCountMatchesUsers, what));
        }
        Ok(true)
    }

    /// Waits for all that walk page tables now (an interrupt on every CPU, or a grace period).
    fn await_walkers(&self, task: &Task) {
        drop(self.walkers.write(task.0));
    }
}
