// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file of hugetlbfs: its folios, the VMAs that map it, and its locks.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::AtomicUsize;

use super::space::Vma;
use crate::sync::Plain;
use crate::waits::{Rwsem, WatchedMutex};

#[derive(Debug)]
pub(super) struct Folio {
    pub(super) lock: WatchedMutex,
    /// Entries of page tables that map it.
    pub(super) mapped: AtomicUsize,
}

#[derive(Debug)]
pub(super) struct Inode {
    /// Changes of the size and of the contents (`inode_lock`).
    pub(super) lock: WatchedMutex,
    /// The lock of the tree (`i_mmap_rwsem`).
    pub(super) i_mmap: Rwsem,
    /// Every VMA that maps the file.
    pub(super) tree: Plain<Vec<Arc<Vma>>>,
    /// The lock of [`Scheme::InodeRwsem`](super::Scheme::InodeRwsem).
    pub(super) sharing: Rwsem,
    /// Held by those that an eviction waits for.
    pub(super) stop_eviction: Rwsem,
    /// A mutex an index (`hugetlb_fault_mutex_table`).
    pub(super) fault_mutexes: Vec<WatchedMutex>,
    /// Huge pages (`i_size`).
    pub(super) size: AtomicUsize,
    /// The page cache: a folio an index.
    pub(super) cache: Plain<Vec<Option<usize>>>,
    pub(super) folios: Vec<Folio>,
    /// Folios that are free.
    pub(super) pool: Plain<Vec<usize>>,
}

impl Inode {
    /// A file of so many huge pages, with as many folios.
    pub(super) fn new(
        size: usize,
        mutex: impl Fn(String) -> WatchedMutex,
        rwsem: impl Fn(String) -> Rwsem,
    ) -> Self {
        let folio = |at| Folio {
            lock: mutex(format!("the lock of folio {at}")),
            mapped: AtomicUsize::new(0),
        };
        Self {
            lock: mutex("the inode's lock".into()),
            i_mmap: rwsem("i_mmap_rwsem".into()),
            tree: Plain::new(Vec::new()),
            sharing: rwsem("the inode's rwsem".into()),
            stop_eviction: rwsem("the end of stop_eviction".into()),
            fault_mutexes: (0..size).map(|at| mutex(format!("fault mutex {at}"))).collect(),
            size: AtomicUsize::new(size),
            cache: Plain::new(vec![None; size]),
            folios: (0..size).map(folio).collect(),
            pool: Plain::new((0..size).rev().collect()),
        }
    }

    /// The VMAs that map the file now.
    pub(super) fn vmas(&self) -> Vec<Arc<Vma>> {
        self.tree.lock().clone()
    }
}
