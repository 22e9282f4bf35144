// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an allocation does that the first walk has not served (`__alloc_pages_slowpath`).

use alloc::sync::Arc;

use super::Mm;
use super::allocate::{AllocError, AllocRequest};
use super::constraint::{Constraint, Look};
use super::geometry::Pfn;
use super::zone::{Zone, ZoneId};

/// Tries without progress, at most (`MAX_RECLAIM_RETRIES`).
const MOST_WITHOUT_PROGRESS: u32 = 16;

/// What direct reclaim can free. Whoever has pages that can be given up implements it.
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
        let begun = self.zonelists.read_begin();
        let changed = || self.zonelists.changed(begun);
        // It may have been found with other nodes, or another list.
        let Some(preferred) = self.preferred_zoneref(request, constraint) else {
            return self.no_page(constraint, begun);
        };
        let min = |zone: &Zone| match request.atomic {
            true => zone.watermarks().min / 2,
            false => zone.watermarks().min,
        };
        let at_min = |zone: &Zone| self.alloc_above(zone, cpu, request, min(zone));
        let mut without_progress = 0;
        loop {
            if constraint.must_restart(Look::TopOfRetry) || changed() {
                return Over::Restart;
            }
            if let Some(pfn) = self.walk(request, preferred, constraint, at_min) {
                return Over::Page(pfn);
            }
            if request.atomic {
                return self.no_page(constraint, begun);
            }
            let progress = self.direct_reclaim(cpu, request, constraint);
            if progress && let Some(pfn) = self.walk(request, preferred, constraint, at_min) {
                return Over::Page(pfn);
            }
            if constraint.must_restart(Look::AfterReclaim) {
                return Over::Restart;
            }
            without_progress = if progress { 0 } else { without_progress + 1 };
            if without_progress <= MOST_WITHOUT_PROGRESS && self.may_retry(request, constraint) {
                continue;
            }
            if constraint.must_restart(Look::BeforeOom) || changed() {
                return Over::Restart;
            }
            (0..self.zone_count()).for_each(|zone| self.drain_all(ZoneId(zone)));
            let last = |zone: &Zone| self.alloc_locked(zone, request);
            return match self.walk(request, preferred, constraint, last) {
                Some(pfn) => Over::Page(pfn),
                None => Over::Fails(AllocError::OutOfMemory),
            };
        }
    }

    fn no_page(&self, constraint: &mut impl Constraint, begun: u64) -> Over {
        if constraint.must_restart(Look::NoPage) || self.zonelists.changed(begun) {
            return Over::Restart;
        }
        Over::Fails(AllocError::Failed)
    }

    /// Whether anything was freed (`__alloc_pages_direct_reclaim`).
    fn direct_reclaim(
        &self,
        cpu: usize,
        request: AllocRequest,
        constraint: &impl Constraint,
    ) -> bool {
        let allowed = |node| constraint.in_nodemask(node) && constraint.allows(node);
        let reclaim = self.reclaim.get();
        reclaim.is_some_and(|reclaim| reclaim.reclaim(self, cpu, request, &allowed) > 0)
    }

    /// Whether a zone would serve the request if all that can be freed in it were
    /// (`should_reclaim_retry`). It looks at the whole list, where a walk begins at the preferred zone.
    fn may_retry(&self, request: AllocRequest, constraint: &impl Constraint) -> bool {
        let Some(reclaim) = self.reclaim.get() else { return false };
        let mut index = 0;
        while let Some((at, id)) = self.next_zoneref(request, index, constraint) {
            let zone = self.zone(id);
            index = at + 1;
            let movable = request.is_movable();
            let mark = zone.watermarks().min + zone.reserve(movable);
            let missing = mark.saturating_sub(reclaim.reclaimable(id));
            if constraint.allows(zone.node) && zone.watermark_ok(request.order, missing, movable) {
                return true;
            }
        }
        false
    }
}
