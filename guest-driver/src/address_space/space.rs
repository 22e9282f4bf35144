// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An address space.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::notifiers::{Asks, Grace, Invalidation, Notifier, Notifiers, Step};
use super::pages::{PageId, Pages};
use super::vma::{Vma, VmaSetup};
use crate::sync::{AtomicBool, Ordering};
use crate::waits::{Party, Rwsem, Waits};

/// An address space (`mm_struct`).
///
/// ```
/// use guest_driver::address_space::{AddressSpace, Pages, Reclaim, VmaSetup};
/// use guest_driver::waits::Waits;
/// use std::sync::Arc;
///
/// let waits = Arc::new(Waits::new());
/// let pages = Arc::new(Pages::new(Arc::new(Reclaim::new(&waits, 0))));
/// let mm = AddressSpace::new(&waits, Arc::clone(&pages), vec![VmaSetup::private(0..4)]);
/// let task = waits.party("the task");
/// let page = mm.get_page(task, 1).expect("it is resident");
/// mm.exit(task);
/// // The reference keeps it.
/// assert_eq!(pages.freed(), 3);
/// assert!(pages.put(page));
/// ```
#[derive(Debug)]
pub struct AddressSpace {
    /// Shared by those that use the page tables; alone for those that change VMAs.
    pub mmap_lock: Rwsem,
    pages: Arc<Pages>,
    /// From the bottom up.
    vmas: Vec<Vma>,
    notifiers: Notifiers,
    /// Nothing is left for the reaper (`MMF_OOM_SKIP`).
    oom_skip: AtomicBool,
}

impl AddressSpace {
    /// An address space with these VMAs, from the bottom up and without overlaps.
    pub fn new(waits: &Arc<Waits>, pages: Arc<Pages>, vmas: Vec<VmaSetup>) -> Self {
        Self {
            mmap_lock: Rwsem::watched(waits, "the mmap lock"),
            vmas: vmas.into_iter().map(|setup| Vma::new(setup, &pages)).collect(),
            pages,
            notifiers: Notifiers::default(),
            oom_skip: AtomicBool::new(false),
        }
    }

    /// Subscribes a notifier before the address space is shared. Returns the number of the subscription.
    pub fn subscribe(&mut self, notifier: Arc<dyn Notifier>, interests: &[Range<u64>]) -> usize {
        self.notifiers.subscribe(notifier, interests)
    }

    /// Its VMAs, from the bottom up.
    pub fn vmas(&self) -> &[Vma] {
        &self.vmas
    }

    /// Those that mirror it.
    pub fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// The frames.
    pub fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// Whether nothing is left for the reaper.
    pub fn is_skipped(&self) -> bool {
        self.oom_skip.load(Ordering::SeqCst)
    }

    /// Nothing is left for the reaper, or it has given up: the OOM killer may choose another victim.
    pub fn skip(&self) {
        self.oom_skip.store(true, Ordering::SeqCst);
    }

    /// Looks a resident page up and takes a reference (`get_user_pages`).
    pub fn get_page(&self, party: Party, page: u64) -> Option<PageId> {
        let _shared = self.mmap_lock.read(party);
        if self.is_skipped() {
            return None;
        }
        let vma = self.vmas.iter().find(|vma| vma.range().contains(&page))?;
        vma.get(page, &self.pages)
    }

    /// The process exits (`exit_mmap`): notifiers drop all, then pages are unmapped with the lock shared,
    /// and page tables freed with the lock taken alone.
    pub fn exit(&self, party: Party) {
        let grace = Grace::new(&self.pages);
        let all = Invalidation {
            party,
            range: 0..u64::MAX,
            step: Step::Block,
            tests_range: false,
            grace: &grace,
        };
        {
            let _shared = self.mmap_lock.read(party);
            if let Ok(started) = self.notifiers.start(&all, Asks::All, None) {
                for vma in &self.vmas {
                    for page in vma.range().clone() {
                        if let Some(page) = vma.zap(page) {
                            self.pages.put(page);
                        }
                    }
                }
                started.end(&all);
            }
        }
        self.skip();
        let _alone = self.mmap_lock.write(party);
        self.vmas.iter().for_each(Vma::free_table);
    }
}
