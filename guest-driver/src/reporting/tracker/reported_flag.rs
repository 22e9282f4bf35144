// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The flag on free blocks and the walk over the free lists, as in mainline
//! (`page_reporting_process`, `page_reporting_cycle`).

use std::sync::Arc;

use crate::page_alloc::zone::ZoneId;
use crate::page_alloc::{FrameState, FreeHook, MigrateType, Pfn, PfnRange};
use crate::reporting::Holding;
use crate::reporting::hold::{Attempt, hold};
use crate::reporting::reporter::{Batch, Reporter};
use crate::reporting::schedule::Schedule;

/// `PAGE_REPORTING_CAPACITY` times 16: a pass reports about a sixteenth of a list.
const BUDGET_SHARE: u64 = 32 * 16;

/// Told of frees for the lists' sake: it remembers nothing but that there was one.
#[derive(Debug)]
pub(in super::super) struct FreeLists {
    order: u8,
    passes: Arc<Schedule>,
}

impl FreeLists {
    pub(in super::super) fn new(order: u8, passes: Arc<Schedule>) -> Self {
        Self { order, passes }
    }
}

impl FreeHook for FreeLists {
    fn order(&self) -> u8 {
        self.order
    }

    fn after_insert(&self, _head: Pfn, _order: u8) {
        self.passes.request();
    }

    /// Splitting for isolation goes through `__free_one_page` and notifies in mainline.
    fn moved(&self, _head: Pfn, _order: u8) {
        self.passes.request();
    }

    fn section_online(&self, _section: usize) {}

    fn section_offline(&self, _section: usize) {}
}

impl Reporter {
    /// Whether another pass has to follow by itself.
    pub(in super::super) fn mainline_pass(&self, batch: &mut Batch<'_>) -> bool {
        let mut again = false;
        for zone in 0..self.mm.zone_count() {
            if batch.stats.failed {
                break;
            }
            if self.zone_is_low(ZoneId(zone)) {
                batch.stats.low_memory += 1;
                if self.config.watermark_guard {
                    continue;
                }
            }
            'lists: for order in self.config.granule_order..=self.mm.geometry().max_order {
                for mt in MigrateType::ALL {
                    if mt == MigrateType::Isolate {
                        continue;
                    }
                    again |= self.cycle(ZoneId(zone), order, mt, batch);
                    if batch.stats.failed {
                        break 'lists;
                    }
                }
            }
            batch.submit(None);
        }
        again || batch.stats.failed
    }

    fn zone_is_low(&self, zone: ZoneId) -> bool {
        let zone = self.mm.zone(zone);
        let reserve = (self.config.batch as u64) << self.config.granule_order;
        !zone.watermark_ok(0, zone.watermarks().low + reserve, true)
    }

    /// Walks one free list; true if there is more for another pass (`page_reporting_cycle`).
    fn cycle(&self, id: ZoneId, order: u8, mt: MigrateType, batch: &mut Batch<'_>) -> bool {
        let mm = &self.mm;
        let zone = mm.zone(id);
        let mut budget = {
            let area = zone.lock();
            if area.first(order, mt).is_none() {
                return false;
            }
            area.nr_free[usize::from(order)].div_ceil(BUDGET_SHARE).cast_signed()
        };
        loop {
            // Takes as many as fit, under the lock; isolating takes the lock by itself.
            let mut wanted = Vec::new();
            {
                let mut area = zone.lock();
                let mut at = area.first(order, mt);
                while let Some(pfn) = at {
                    at = mm.next_free(pfn);
                    if mm.state(pfn) != (FrameState::Buddy { order, reported: false }) {
                        continue;
                    }
                    if budget < 0 {
                        return true;
                    }
                    if batch.held.len() + wanted.len() >= batch.capacity() {
                        mm.rotate_to(&mut area, order, mt, pfn);
                        break;
                    }
                    batch.stats.offered += 1;
                    match self.config.holding {
                        Holding::Pull => {
                            if !mm.isolate_free_page(id, &mut area, pfn, order) {
                                batch.stats.low_memory += 1;
                                break;
                            }
                            batch.push(PfnRange::block(pfn, order));
                        }
                        Holding::Isolate => wanted.push(pfn),
                    }
                }
            }
            let more = self.isolate_wanted(&wanted, order, batch);
            if batch.held.len() < batch.capacity() {
                return more;
            }
            batch.submit(None);
            if batch.stats.failed {
                return true;
            }
            budget -= 1;
        }
    }

    /// Isolates what was found; true if something has to be looked at again.
    fn isolate_wanted(&self, wanted: &[Pfn], order: u8, batch: &mut Batch<'_>) -> bool {
        let mut again = false;
        for &pfn in wanted {
            match hold(&self.mm, &self.config, pfn, order) {
                Attempt::Held(range) => batch.push(range),
                Attempt::NotFree | Attempt::LostRace => batch.stats.lost_race += 1,
                Attempt::Busy => {
                    batch.stats.busy += 1;
                    again = true;
                }
                Attempt::LowMemory => {
                    batch.stats.low_memory += 1;
                    return true;
                }
            }
        }
        again
    }
}
