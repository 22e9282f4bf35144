// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reaper (`oom_reap_task`).

use alloc::vec::Vec;
use core::ops::Range;

use super::scheme::{Flaw, Scheme};
use crate::address_space::{AddressSpace, Again, Asks, Grace, Invalidation, Vma, VmaKind};
use crate::waits::Party;

/// How the reaper works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it does about notifiers.
    pub scheme: Scheme,
    /// Attempts until it gives up (`MAX_OOM_REAP_RETRIES`).
    pub attempts: u32,
    /// Pages of a chunk, for schemes with chunks.
    pub chunk_pages: u64,
    /// Locked memory is reaped as well, as in Linux since 5.18.
    pub reaps_locked: bool,
}

impl Config {
    /// As in Linux, with chunks of 2 MiB.
    pub const fn new(scheme: Scheme) -> Self {
        Self { scheme, attempts: 10, chunk_pages: 512, reaps_locked: true }
    }
}

/// What the reaper has just done, or does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has freed so many pages.
    Freed(u64),
    /// An attempt was not complete, and it sleeps until the next one.
    Sleeps,
}

/// What became of an address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Attempts that it took.
    pub attempts: u32,
    /// Pages that were unmapped.
    pub unmapped: u64,
    /// Of them, pages that this freed. The others have other users, or wait for a notifier.
    pub freed: u64,
    /// Starts that failed.
    pub busy: u64,
    /// Every attempt was incomplete.
    pub gave_up: bool,
}

/// The OOM reaper.
#[derive(Clone, Copy, Debug)]
pub struct Reaper {
    /// Its task.
    pub party: Party,
    /// How it works.
    pub config: Config,
    /// A mistake that it makes.
    pub flaw: Option<Flaw>,
}

/// An attempt was not complete.
struct Incomplete;

impl Reaper {
    /// Reaps an address space. After the last attempt another victim may be chosen, whatever is left.
    pub fn reap(&self, mm: &AddressSpace, on_event: &mut dyn FnMut(Event)) -> Reaped {
        let mut reaped = Reaped { attempts: 1, ..Reaped::default() };
        while self.attempt(mm, &mut reaped, on_event).is_err() {
            let is_last = reaped.attempts >= self.config.attempts;
            if is_last && self.flaw != Some(Flaw::TriesUntilDone) {
                reaped.gave_up = true;
                break;
            }
            reaped.attempts += 1;
            on_event(Event::Sleeps);
        }
        mm.skip();
        reaped
    }

    fn attempt(
        &self,
        mm: &AddressSpace,
        reaped: &mut Reaped,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<(), Incomplete> {
        let _shared = match self.flaw {
            Some(Flaw::WaitsForMmapLock) => mm.mmap_lock.read(self.party),
            _ => mm.mmap_lock.try_read(self.party).ok_or(Incomplete)?,
        };
        if mm.is_skipped() && self.flaw != Some(Flaw::IgnoresExit) {
            return Ok(());
        }
        let scheme = self.config.scheme;
        if scheme == Scheme::SkipNotified && !mm.notifiers().all().is_empty() {
            return Ok(());
        }
        let mut is_complete = true;
        for vma in mm.vmas().iter().rev().filter(|vma| self.may_reap(vma)) {
            for range in self.pieces(vma.range()) {
                match self.piece(mm, vma, range, reaped) {
                    Ok(freed) => on_event(Event::Freed(freed)),
                    Err(Again) => {
                        reaped.busy += 1;
                        is_complete = false;
                    }
                }
            }
        }
        if is_complete { Ok(()) } else { Err(Incomplete) }
    }

    fn may_reap(&self, vma: &Vma) -> bool {
        vma.kind() == VmaKind::Private && (self.config.reaps_locked || !vma.is_locked())
    }

    /// The parts of a VMA that are reaped one by one, from the top down.
    fn pieces(&self, vma: &Range<u64>) -> Vec<Range<u64>> {
        let pages = vma.end - vma.start;
        let each = if self.config.scheme.is_chunked() { self.config.chunk_pages } else { pages };
        let each = each.max(1);
        let piece = |number| {
            let start = vma.start + number * each;
            start..vma.end.min(start + each)
        };
        (0..pages.div_ceil(each)).rev().map(piece).collect()
    }

    /// Unmaps a range between the start and the end of its invalidation. Returns the pages that this freed.
    fn piece(
        &self,
        mm: &AddressSpace,
        vma: &Vma,
        range: Range<u64>,
        reaped: &mut Reaped,
    ) -> Result<u64, Again> {
        let Config { scheme, .. } = self.config;
        let grace = Grace::new(mm.pages());
        let invalidation = Invalidation {
            party: self.party,
            range,
            step: scheme.step(),
            tests_range: scheme.asks() == Asks::DriverTests,
            grace: &grace,
        };
        let flaw = match self.flaw {
            Some(Flaw::Core(flaw)) => Some(flaw),
            _ => None,
        };
        let started = mm.notifiers().start(&invalidation, scheme.asks(), flaw)?;
        for page in invalidation.range.clone() {
            let zapped = match self.flaw {
                Some(Flaw::ZapsWithoutLock) => vma.zap_unlocked(page),
                _ => vma.zap(page),
            };
            if let Some(page) = zapped {
                grace.keep(page);
                reaped.unmapped += 1;
            }
        }
        let freed = grace.pass();
        reaped.freed += freed;
        started.end(&invalidation);
        Ok(freed)
    }
}
