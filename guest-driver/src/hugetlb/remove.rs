// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Removing folios from the file: truncation, punch, eviction.

use alloc::format;
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::broken::{Broken, Rule};
use super::space::Vma;
use super::{Flaw, Hugetlb, Page, Scheme, Task};

impl Hugetlb {
    /// The file ends after `size` huge pages (`hugetlb_vmtruncate`).
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn truncate(&self, task: &Task, size: usize) -> Result<(), Broken> {
        let _inode = self.inode.lock.lock(task.0);
        self.inode.size.store(size, Ordering::SeqCst);
        self.remove(task, size..self.pages())
    }

    /// Removes the folios of `range` (`hugetlbfs_punch_hole`).
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn punch(&self, task: &Task, range: Range<usize>) -> Result<(), Broken> {
        let _inode = self.inode.lock.lock(task.0);
        self.remove(task, range)
    }

    /// Removes all folios of a file that nothing maps; whether nothing did (`hugetlbfs_evict_inode`).
    ///
    /// # Errors
    /// The first rule that it saw broken.
    pub fn evict(&self, task: &Task) -> Result<bool, Broken> {
        if !self.inode.tree.lock().is_empty() {
            return Ok(false);
        }
        let waits = self.uses(Scheme::StopEviction);
        let _end = waits.then(|| self.inode.stop_eviction.write(task.0));
        self.remove_inode_hugepages(task, 0..self.pages())?;
        Ok(true)
    }

    fn remove(&self, task: &Task, range: Range<usize>) -> Result<(), Broken> {
        self.vmdelete_list(task, range.clone())?;
        self.remove_inode_hugepages(task, range)
    }

    /// Unmaps `range` from every VMA whose lock is free (`hugetlb_vmdelete_list`).
    fn vmdelete_list(&self, task: &Task, range: Range<usize>) -> Result<(), Broken> {
        let _sharing = self.uses(Scheme::InodeRwsem).then(|| self.inode.sharing.write(task.0));
        let _tree = self.inode.i_mmap.write(task.0);
        for vma in self.inode.vmas() {
            if !self.uses(Scheme::VmaLock) {
                self.unmap_range(task, &vma, range.clone())?;
            } else if let Some(_own) = vma.lock.try_write(task.0) {
                self.unmap_range(task, &vma, range.clone())?;
            }
        }
        Ok(())
    }

    fn remove_inode_hugepages(&self, task: &Task, range: Range<usize>) -> Result<(), Broken> {
        for index in range {
            let mut mutex = Some(self.inode.fault_mutexes[index].lock(task.0));
            let Some(folio) = self.inode.cache.lock()[index] else { continue };
            // It was faulted in behind the unmapping, or its VMA was left out.
            if self.inode.folios[folio].mapped.load(Ordering::SeqCst) > 0 {
                if self.config.scheme.locks_before_mutex() {
                    drop(mutex.take());
                    let _sharing =
                        self.uses(Scheme::InodeRwsem).then(|| self.inode.sharing.write(task.0));
                    let _tree = self.inode.i_mmap.write(task.0);
                    mutex = Some(self.inode.fault_mutexes[index].lock(task.0));
                    for vma in self.inode.vmas() {
                        self.unmap_range(task, &vma, index..index + 1)?;
                    }
                } else {
                    self.unmap_file_folio(task, folio, index)?;
                }
            }
            let _held = self.inode.folios[folio].lock.lock(task.0);
            if self.inode.cache.lock()[index].take() != Some(folio) {
                continue;
            }
            let mapped = self.inode.folios[folio].mapped.load(Ordering::SeqCst);
            if mapped > 0 {
                let what = format!("page {index} is removed and mapped by {mapped} entries");
                return Err(Broken::new(Rule::NoMappingOfARemovedFolio, what));
            }
            self.inode.pool.lock().push(folio);
            drop(mutex);
        }
        Ok(())
    }

    /// Unmaps one folio from every VMA that maps it. For the lock of a VMA that is taken it waits, with the
    /// tree unlocked (`hugetlb_unmap_file_folio`). The fault mutex keeps the folio from being mapped again.
    fn unmap_file_folio(&self, task: &Task, folio: usize, index: usize) -> Result<(), Broken> {
        loop {
            let tree = self.inode.i_mmap.write(task.0);
            let mut busy = None;
            for vma in self.inode.vmas() {
                if !self.maps(&vma, folio, index) {
                    continue;
                }
                let vma_lock = self.uses(Scheme::VmaLock);
                let own = vma_lock.then(|| vma.lock.try_write(task.0)).flatten();
                if vma_lock && own.is_none() {
                    if self.has(Flaw::SkipsBusyVma) {
                        continue;
                    }
                    busy = Some(Arc::clone(&vma));
                    break;
                }
                self.unmap_range(task, &vma, index..index + 1)?;
            }
            drop(tree);
            let Some(vma) = busy else { return Ok(()) };
            let _own = vma.lock.write(task.0);
            let _tree = self.inode.i_mmap.write(task.0);
            // It may be gone by now, and its page tables with it.
            if self.inode.tree.lock().iter().any(|other| Arc::ptr_eq(other, &vma)) {
                self.unmap_range(task, &vma, index..index + 1)?;
            }
        }
    }

    fn maps(&self, vma: &Vma, folio: usize, index: usize) -> bool {
        let (piece, _) = self.place(index);
        let table = self.spaces[vma.space].pud(piece);
        table.and_then(|table| self.entry(table, index)) == Some(Page::Folio(folio))
    }
}
