// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM as a secondary MMU (`virt/kvm/kvm_main.c`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::setup::Setup;
use crate::address_space::{AddressSpace, Again, Invalidation, Notifier, PageId, Step};
use crate::sync::{self, AtomicU64, Ordering, Plain};
use crate::waits::{Party, Waits, WatchedMutex};

/// A mistake of KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmFlaw {
    /// A fault allocates with `mmu_lock` held.
    AllocatesUnderLock,
    /// A fault reads the sequence after it has looked the page up.
    ReadsSequenceLate,
    /// A fault does not look whether an invalidation is in progress.
    IgnoresCount,
}

/// How often a fault is tried.
const TRIES: u32 = 3;

/// KVM: guest page tables under `mmu_lock`, a count of invalidations in progress, and a sequence.
///
/// A fault takes the memory for page tables before `mmu_lock` (`mmu_topup_memory_caches`), so that no holder
/// of `mmu_lock` waits for reclaim. A notifier may therefore wait for it, also the reaper's: this is its
/// second step. The wait is bounded by what a holder does, and never fails.
#[derive(Debug)]
pub struct Kvm {
    setup: Setup,
    flaw: Option<KvmFlaw>,
    mmu_lock: WatchedMutex,
    sequence: AtomicU64,
    /// Under `mmu_lock`.
    state: Plain<State>,
}

#[derive(Debug, Default)]
struct State {
    in_progress: u32,
    mapped: Vec<(u64, PageId)>,
}

impl Kvm {
    /// A guest that has mapped nothing yet.
    pub fn new(waits: &Arc<Waits>, setup: Setup, flaw: Option<KvmFlaw>) -> Self {
        Self {
            setup,
            flaw,
            mmu_lock: WatchedMutex::watched(waits, "mmu_lock"),
            sequence: AtomicU64::new(0),
            state: Plain::new(State::default()),
        }
    }

    /// The guest touches a page of `mm` that it has not mapped.
    pub fn fault(&self, party: Party, mm: &AddressSpace, at: u64) {
        let allocates_late = self.flaw == Some(KvmFlaw::AllocatesUnderLock);
        if !allocates_late && self.setup.reclaim.alloc(party).is_err() {
            return;
        }
        for _ in 0..TRIES {
            let mut sequence = self.sequence.load(Ordering::SeqCst);
            let Some(page) = mm.get_page(party, at) else { return };
            if self.flaw == Some(KvmFlaw::ReadsSequenceLate) {
                sequence = self.sequence.load(Ordering::SeqCst);
            }
            let held = self.mmu_lock.lock(party);
            if allocates_late {
                let _ = self.setup.reclaim.alloc(party);
            }
            let is_mapped = self.map(sequence, at, page);
            drop(held);
            self.setup.pages.put(page);
            if is_mapped {
                return;
            }
            sync::yield_now();
        }
    }

    /// Maps the page unless an invalidation is in progress or has come in between (`mmu_invalidate_retry`).
    fn map(&self, sequence: u64, at: u64, page: PageId) -> bool {
        let now = self.sequence.load(Ordering::SeqCst);
        let mut state = self.state.lock();
        let in_progress = state.in_progress > 0 && self.flaw != Some(KvmFlaw::IgnoresCount);
        if in_progress || now != sequence {
            return false;
        }
        state.mapped.push((at, page));
        self.setup.pages.map_secondary(page, self.setup.subscription);
        true
    }

    /// Whether no invalidation is in progress.
    pub fn is_at_rest(&self) -> bool {
        self.state.lock().in_progress == 0
    }
}

impl Notifier for Kvm {
    fn start(&self, invalidation: &Invalidation<'_>) -> Result<(), Again> {
        if invalidation.tests_range && !self.setup.is_interested(&invalidation.range) {
            return Ok(());
        }
        if invalidation.step == Step::Bail {
            return Err(Again);
        }
        let _held = self.mmu_lock.lock(invalidation.party);
        let mut state = self.state.lock();
        state.in_progress += 1;
        self.setup.unmap(&mut state.mapped, &invalidation.range);
        Ok(())
    }

    fn end(&self, invalidation: &Invalidation<'_>) {
        if invalidation.tests_range && !self.setup.is_interested(&invalidation.range) {
            return;
        }
        let _held = self.mmu_lock.lock(invalidation.party);
        self.sequence.fetch_add(1, Ordering::SeqCst);
        let mut state = self.state.lock();
        state.in_progress = state.in_progress.saturating_sub(1);
    }
}
