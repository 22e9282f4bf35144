// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the actors of a run share, and how an allocation is judged.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::around::Around;
use super::invariant::Holds;
use super::setting::{Readers, Setting};
use crate::Run;
use guest_driver::page_alloc::{
    AllocError, AllocRequest, Constraint, Look, Mm, MovePages, Pfn, Reclaim, ZoneId, ZoneType,
};

/// An allocation that tries more often is abandoned.
const MOST_TRIES: u64 = 16;
/// The section of the movable zone.
pub(super) const MOVABLE_SECTION: usize = 0;

/// What the actors of a run share.
pub struct World {
    pub(super) mm: Arc<Mm>,
    pub(super) around: Arc<Around>,
    pub(super) setting: Setting,
    pub(super) run: Arc<Run<Holds>>,
    /// Updates that have begun, and that have ended.
    pub(super) updates: [AtomicU64; 2],
}

/// An allocation's nodemask, and how often it has tried.
struct Nodemask {
    readers: Readers,
    tries: u64,
}

impl Constraint for Nodemask {
    /// No cpuset limits it.
    fn allows(&self, _node: u8) -> bool {
        self.tries <= MOST_TRIES
    }

    fn in_nodemask(&self, node: u8) -> bool {
        self.readers != Readers::Bound || node == self.readers.node()
    }

    fn must_restart(&mut self, at: Look) -> bool {
        self.tries += u64::from(at == Look::TopOfRetry);
        false
    }
}

/// Reclaim that goes on making progress, of pages that others take.
pub(super) struct Progress;

impl Reclaim for Progress {
    fn reclaim(&self, _: &Mm, _: usize, _: AllocRequest, allowed: &dyn Fn(u8) -> bool) -> u64 {
        u64::from(allowed(0) || allowed(1))
    }

    fn reclaimable(&self, _: ZoneId) -> u64 {
        0
    }
}

/// Nothing of the movable zone needs moving: no reader may have a page of it.
struct Nothing;

impl MovePages for Nothing {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

impl World {
    /// A reader allocates and frees, or walks.
    pub(super) fn read(&self, cpu: usize) {
        for _ in 0..self.setting.scenario.rounds {
            if self.run.is_over() {
                return;
            }
            match self.setting.scenario.readers {
                Readers::Walk => self.walk(cpu),
                readers => self.allocate(cpu, readers),
            }
        }
    }

    fn allocate(&self, cpu: usize, readers: Readers) {
        let [_, ended] = &self.updates;
        let before = ended.load(Ordering::Relaxed);
        let mut nodemask = Nodemask { readers, tries: 0 };
        let page = self.mm.alloc_constrained(cpu, readers.request(), &mut nodemask);
        let [begun, _] = &self.updates;
        let updates = begun.load(Ordering::Relaxed) - before;
        let tries = nodemask.tries;
        let beside = format!("beside {updates} updates, after {tries} tries");
        // A try that finds nothing, and the look that tells of the update.
        if tries > 1 + 2 * updates {
            let what = format!("CPU {cpu} tries on and on {beside}");
            self.run.violate(Holds::TriesBoundedByRebuilds, what);
        }
        let page = match page {
            Ok(page) => page,
            Err(AllocError::Failed) if self.setting.scenario.may_fail => return,
            Err(error) => {
                let what = format!("CPU {cpu}: {error:?} {beside}");
                return self.run.violate(Holds::NoOomWhileAZoneCanServe, what);
            }
        };
        if let Some(zone) = self.mm.zone_of(page).map(|zone| self.mm.zone(zone)) {
            let fits = readers != Readers::Kernel || zone.kind() == ZoneType::Normal;
            if self.setting.eligible && !(fits && nodemask.in_nodemask(zone.node())) {
                let kind = zone.kind();
                let what = format!("CPU {cpu}: {kind:?} zone of node {} {beside}", zone.node());
                self.run.violate(Holds::PageFromAnEligibleZone, what);
            }
        }
        self.mm.free(cpu, page);
    }

    fn walk(&self, cpu: usize) {
        let mut visits = vec![0; self.mm.zone_count()];
        self.mm.walk_zonelist(cpu, Readers::Walk.request(), |zone| {
            visits[zone.0] += 1;
            true
        });
        for (zone, &visits) in visits.iter().enumerate() {
            let stays = self.mm.zone(ZoneId(zone)).kind() == ZoneType::Normal;
            let what = || format!("CPU {cpu} visits zone {zone} {visits} times");
            if stays && visits == 0 {
                self.run.violate(Holds::WalkMissesNoZone, what());
            }
            if visits > 1 {
                self.run.violate(Holds::WalkVisitsOnce, what());
            }
        }
    }

    /// The movable zone loses its memory, and gets it back.
    pub(super) fn update(&self) {
        let [begun, ended] = &self.updates;
        for _ in 0..self.setting.scenario.updates {
            if self.run.is_over() {
                return;
            }
            begun.fetch_add(1, Ordering::Relaxed);
            // A page that a reader should not have keeps it online.
            let _ = if self.mm.is_online(MOVABLE_SECTION) {
                self.mm.offline_block(MOVABLE_SECTION, &Nothing, &|| self.run.is_over())
            } else {
                self.mm.online_block(MOVABLE_SECTION)
            };
            ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Checks what must hold once all is quiet.
    pub(super) fn at_rest(&self) {
        if let Err(inconsistency) = self.mm.validate() {
            self.run.violate(Holds::CountersMatchFrames, inconsistency.to_string());
        }
    }
}
