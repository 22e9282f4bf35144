// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an allocation does that the first walk has not served (`__alloc_pages_slowpath`).

use alloc::sync::Arc;

use super::Mm;
use super::allocate::{AllocError, AllocRequest};
use super::constraint::{Anywhere, Constraint, Look};
use super::geometry::Pfn;
use super::zone::{Zone, ZoneId};

/// Tries without progress, at most (`MAX_RECLAIM_RETRIES`).
const MOST_WITHOUT_PROGRESS: u32 = 16;

/// What direct reclaim can free. The owner of pages that can be given up implements it.
pub trait Reclaim: Send + Sync {
    /// Frees pages in zones of nodes that are `allowed`; how many.
    fn reclaim(
        &self,
        mm: &Mm,
        cpu: usize,
        request: AllocRequest,
        allowed: &dyn Fn(u8) -> bool,
    ) -> u64;

    /// Pages of the zone that could be freed (`zone_reclaimable_pages`).
    fn reclaimable(&self, zone: ZoneId) -> u64;
}

/// Why a try is over.
enum Over {
    /// It has a page.
    Page(Pfn),
    /// It is to begin with new cookies.
    Restart,
    /// There is no page.
    Fails(AllocError),
}

impl Mm {
    /// Installs what can be reclaimed.
    ///
    /// # Errors
    /// Returns `reclaim` if there is one already.
    pub fn set_reclaim(&self, reclaim: Arc<dyn Reclaim>) -> Result<(), Arc<dyn Reclaim>> {
        self.reclaim.set(reclaim)
    }

    #[cold]
    pub(super) fn alloc_slow(
        &self,
        cpu: usize,
        request: AllocRequest,
        constraint: &mut impl Constraint,
    ) -> Result<Pfn, AllocError> {
        loop {
            match self.alloc_slow_once(cpu, request, constraint) {
                Over::Page(pfn) => return Ok(pfn),
                Over::Restart => {}
                Over::Fails(error) => return Err(error),
            }
        }
    }

    /// From one reading of the cookies to the next.
    fn alloc_slow_once(
        &self,
        cpu: usize,
        request: AllocRequest,
        constraint: &mut impl Constraint,
    ) -> Over {
        constraint.begin();
        let begun = self.zonelists.read_begin(cpu, request.atomic);
        let changed = || self.zonelists.changed(begun);
        // It may have been found with other nodes, or in another list.
        let Some(preferred) = self.preferred_zoneref(cpu, request, constraint) else {
            return self.no_page(constraint, begun);
        };
        let at_min = |zone: &Zone| self.alloc_above(zone, cpu, request, zone.watermarks().min);
        let mut without_progress = 0;
        loop {
            if constraint.must_restart(Look::TopOfRetry) || changed() {
                return Over::Restart;
            }
            if request.atomic {
                return match self.alloc_atomic(cpu, request) {
                    Some(pfn) => Over::Page(pfn),
                    None => self.no_page(constraint, begun),
                };
            }
            if let Some(pfn) = self.walk_again(cpu, request, preferred, constraint, at_min) {
                return Over::Page(pfn);
            }
            let progress = self.reclaim(cpu, request, constraint);
            if constraint.must_restart(Look::AfterReclaim) {
                return Over::Restart;
            }
            if progress
                && let Some(pfn) = self.walk_again(cpu, request, preferred, constraint, at_min)
            {
                return Over::Page(pfn);
            }
            (0..self.zone_count()).for_each(|zone| self.drain_all(ZoneId(zone)));
            let locked = |zone: &Zone| self.alloc_locked(zone, request);
            if let Some(pfn) = self.walk_again(cpu, request, preferred, constraint, locked) {
                return Over::Page(pfn);
            }
            without_progress = if progress { 0 } else { without_progress + 1 };
            if without_progress <= MOST_WITHOUT_PROGRESS && self.may_retry(cpu, request, constraint)
            {
                continue;
            }
            if constraint.must_restart(Look::BeforeOom) || changed() {
                return Over::Restart;
            }
            return Over::Fails(AllocError::OutOfMemory);
        }
    }

    /// Where a walk begins: the first zone of the list that is in the nodemask
    /// (`first_zones_zonelist`).
    fn preferred_zoneref(
        &self,
        cpu: usize,
        request: AllocRequest,
        constraint: &impl Constraint,
    ) -> Option<usize> {
        self.next_zoneref(&self.list_for(cpu, request, constraint), request, 0, constraint)
    }

    /// Walks from the index at which the preferred zone was when the slow path began. Where a pointer is
    /// swapped the list may be another one by now, so that it looks for that zone again.
    fn walk_again(
        &self,
        cpu: usize,
        request: AllocRequest,
        preferred: usize,
        constraint: &impl Constraint,
        take: impl Fn(&Zone) -> Option<Pfn>,
    ) -> Option<Pfn> {
        let list = self.list_for(cpu, request, constraint);
        let index = if self.zonelists.keeps_indices() {
            preferred
        } else {
            self.next_zoneref(&list, request, 0, constraint)?
        };
        self.walk(&list, request, index, constraint, take)
    }

    /// Walks all zones, without nodemask and cpuset (no `ALLOC_CPUSET`), down to three eighths of the min
    /// watermark (`ALLOC_MIN_RESERVE` and `ALLOC_NON_BLOCK`).
    fn alloc_atomic(&self, cpu: usize, request: AllocRequest) -> Option<Pfn> {
        let list = self.list_for(cpu, request, &Anywhere);
        let index = self.next_zoneref(&list, request, 0, &Anywhere)?;
        self.walk(&list, request, index, &Anywhere, |zone| {
            let half = zone.watermarks().min - zone.watermarks().min / 2;
            self.alloc_above(zone, cpu, request, half - half / 4)
        })
    }

    fn no_page(&self, constraint: &mut impl Constraint, begun: u64) -> Over {
        if constraint.must_restart(Look::NoPage) || self.zonelists.changed(begun) {
            return Over::Restart;
        }
        Over::Fails(AllocError::Failed)
    }

    /// Whether anything was freed (`try_to_free_pages`).
    fn reclaim(&self, cpu: usize, request: AllocRequest, constraint: &mut impl Constraint) -> bool {
        let Some(reclaim) = self.reclaim.get() else { return false };
        constraint.before_reclaim();
        let allowed = |node| constraint.in_nodemask(node) && constraint.allows(node);
        let progress = reclaim.reclaim(self, cpu, request, &allowed) > 0;
        constraint.after_reclaim();
        progress
    }

    /// Whether a zone would serve the request if all that can be freed in it were
    /// (`should_reclaim_retry`). It looks at the whole list, where a walk begins at the preferred zone.
    fn may_retry(&self, cpu: usize, request: AllocRequest, constraint: &impl Constraint) -> bool {
        let Some(reclaim) = self.reclaim.get() else { return false };
        let list = self.list_for(cpu, request, constraint);
        let Some(first) = self.next_zoneref(&list, request, 0, constraint) else { return false };
        let movable = request.is_movable();
        let serves = |id: ZoneId, zone: &Zone| {
            let mark = zone.watermarks().min + zone.reserve(movable);
            let missing = mark.saturating_sub(reclaim.reclaimable(id));
            let serves =
                constraint.allows(zone.node) && zone.watermark_ok(request.order, missing, movable);
            serves.then_some(())
        };
        self.walk_from(&list, request, first, constraint, serves).is_some()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
