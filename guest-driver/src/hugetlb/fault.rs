// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults (`hugetlb_fault`), and the sharing of page tables (`huge_pmd_share`).

use core::sync::atomic::Ordering;

use super::broken::{Broken, Rule};
use super::space::{Space, Vma};
use super::{Flaw, Hugetlb, Page, Scheme, TableRef, Task};
use crate::waits::{Held, Shared};

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The page is mapped.
    Mapped,
    /// The page is beyond the end of the file.
    Sigbus,
    /// The address space does not map the file.
    NoMapping,
    /// There is no memory for a page table or a folio.
    OutOfMemory,
}

/// A page table with its lock held.
pub(super) struct Locked<'a> {
    pub(super) table: TableRef,
    held: Held<'a>,
    _grace: Option<Shared<'a>>,
}

impl Hugetlb {
    /// A task of address space `space` touches page `index` of the file.
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn fault(&self, task: &Task, space: usize, index: usize) -> Result<Fault, Broken> {
        let space = &self.spaces[space];
        let _mmap = space.mmap_lock.read(task.0);
        let Some(vma) = space.vma() else { return Ok(Fault::NoMapping) };
        let _over = self.over_fault(task);
        let _mutex = self.inode.fault_mutexes[index].lock(task.0);
        let _vma = self.uses(Scheme::VmaLock).then(|| vma.lock.read(task.0));
        let Some(table) = self.huge_pte_alloc(task, space, &vma, index)? else {
            return Ok(Fault::OutOfMemory);
        };
        let cached = self.inode.cache.lock()[index];
        let folio = match cached {
            Some(folio) => folio,
            None if index >= self.inode.size.load(Ordering::SeqCst) => return Ok(Fault::Sigbus),
            None => match self.inode.pool.lock().pop() {
                Some(folio) => folio,
                None => return Ok(Fault::OutOfMemory),
            },
        };
        self.step();
        let _folio = self.inode.folios[folio].lock.lock(task.0);
        if cached.is_none() {
            self.inode.cache.lock()[index] = Some(folio);
        }
        let Some(locked) = self.huge_pte_lock(task, space, &vma, index, table)? else {
            self.back_out(index, folio, cached.is_none());
            return Ok(Fault::OutOfMemory);
        };
        self.step();
        self.set_entry(space, index, locked.table, Page::Folio(folio))?;
        drop(locked.held);
        Ok(Fault::Mapped)
    }

    /// A copy-on-write fault of a private mapping that gets no huge page (`hugetlb_wp`): it lets its locks
    /// go, unmaps the page from the other processes and goes on.
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn cow_fault(&self, task: &Task, space: usize, index: usize) -> Result<Fault, Broken> {
        let space = &self.spaces[space];
        let _mmap = space.mmap_lock.read(task.0);
        let Some(vma) = space.vma() else { return Ok(Fault::NoMapping) };
        let mutex = self.inode.fault_mutexes[index].lock(task.0);
        let lock = vma.lock.read(task.0);
        let Some(folio) = self.inode.cache.lock()[index] else { return Ok(Fault::OutOfMemory) };
        let mut held = Some(self.inode.folios[folio].lock.lock(task.0));
        if !self.has(Flaw::KeepsFolioLock) {
            held = None;
        }
        drop(lock);
        drop(mutex);
        // `unmap_ref_private`: nothing else has a private mapping here.
        drop(self.inode.i_mmap.write(task.0));
        let _mutex = self.inode.fault_mutexes[index].lock(task.0);
        let _lock = vma.lock.read(task.0);
        drop(held);
        Ok(Fault::Mapped)
    }

    /// The lock of the scheme that comes before the fault mutex.
    pub(super) fn over_fault(&self, task: &Task) -> Option<Shared<'_>> {
        match self.config.scheme {
            Scheme::IMmapRead => Some(self.inode.i_mmap.read(task.0)),
            Scheme::InodeRwsem => Some(self.inode.sharing.read(task.0)),
            Scheme::StopEviction => Some(self.inode.stop_eviction.read(task.0)),
            _ => None,
        }
    }

    fn back_out(&self, index: usize, folio: usize, new: bool) {
        if new {
            self.inode.cache.lock()[index] = None;
            self.inode.pool.lock().push(folio);
        }
    }

    /// The page table for `index`: the one that is installed, another's, or a new one; none without memory
    /// for one (`huge_pte_alloc`).
    pub(super) fn huge_pte_alloc(
        &self,
        task: &Task,
        space: &Space,
        vma: &Vma,
        index: usize,
    ) -> Result<Option<TableRef>, Broken> {
        let (piece, _) = self.place(index);
        self.step();
        if let Some(table) = space.pud(piece) {
            return Ok(Some(table));
        }
        if vma.shareable.load(Ordering::SeqCst)
            && let Some(table) = self.huge_pmd_share(task, space, vma, piece)?
        {
            return Ok(Some(table));
        }
        let Some(table) = self.tables.alloc() else { return Ok(None) };
        self.step();
        if !space.populate(piece, table) {
            self.tables.put(table.frame)?;
        }
        Ok(space.pud(piece))
    }

    fn huge_pmd_share(
        &self,
        task: &Task,
        space: &Space,
        vma: &Vma,
        piece: usize,
    ) -> Result<Option<TableRef>, Broken> {
        // The one that has it already holds it over all of the fault.
        let _tree = (!self.uses(Scheme::IMmapRead)).then(|| self.inode.i_mmap.read(task.0));
        let others = self
            .inode
            .vmas()
            .into_iter()
            .filter(|other| other.space != vma.space && other.shareable.load(Ordering::SeqCst));
        let Some(table) = others.filter_map(|other| self.spaces[other.space].pud(piece)).next()
        else {
            return Ok(None);
        };
        let counts_references = self.has(Flaw::CountsReferences);
        let count = |by: isize| {
            self.tables.with(table, |state| {
                let count =
                    if counts_references { &mut state.references } else { &mut state.shares };
                *count = count.saturating_add_signed(by);
            })
        };
        self.step();
        count(1).ok_or_else(|| {
            let what = "a page table that another has installed is gone";
            Broken::new(Rule::ShareCountMatchesUsers, what)
        })?;
        self.step();
        if !space.populate(piece, table) {
            count(-1);
        }
        Ok(space.pud(piece))
    }

    /// The page table for `index` with its lock held: `table`, which was looked up before, or by a scheme
    /// that checks again the one that is installed now; none without memory for one.
    fn huge_pte_lock(
        &self,
        task: &Task,
        space: &Space,
        vma: &Vma,
        index: usize,
        mut table: TableRef,
    ) -> Result<Option<Locked<'_>>, Broken> {
        let (piece, _) = self.place(index);
        loop {
            let mut grace = None;
            if self.uses(Scheme::RcuCheckAgain) {
                grace = Some(self.walkers.read(task.0));
                match space.pud(piece) {
                    Some(installed) => table = installed,
                    None => {
                        drop(grace);
                        match self.huge_pte_alloc(task, space, vma, index)? {
                            Some(_) => continue,
                            None => return Ok(None),
                        }
                    }
                }
            }
            self.step();
            let held = self.tables.lock(table, task.0)?;
            if !self.config.scheme.checks_again() || space.pud(piece) == Some(table) {
                return Ok(Some(Locked { table, held, _grace: grace }));
            }
            drop(held);
            drop(grace);
            match self.huge_pte_alloc(task, space, vma, index)? {
                Some(other) => table = other,
                None => return Ok(None),
            }
        }
    }

    /// Maps `page` at `index` by `table`, whose lock is held.
    pub(super) fn set_entry(
        &self,
        space: &Space,
        index: usize,
        table: TableRef,
        page: Page,
    ) -> Result<(), Broken> {
        let (piece, entry) = self.place(index);
        if space.pud(piece) != Some(table) {
            let what =
                "an entry is written to a page table that the address space has not installed";
            return Err(Broken::new(Rule::EntryInAnInstalledTable, what));
        }
        let old = self.tables.with(table, |state| state.entries[entry].replace(page)).flatten();
        for (page, up) in [(old, false), (Some(page), true)] {
            let Some(Page::Folio(folio)) = page else { continue };
            let mapped = &self.inode.folios[folio].mapped;
            match up {
                true => mapped.fetch_add(1, Ordering::SeqCst),
                false => mapped.fetch_sub(1, Ordering::SeqCst),
            };
        }
        Ok(())
    }
}
