// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The flag on free blocks and the walk over the free lists, as in mainline
//! (`page_reporting_process`, `page_reporting_cycle`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::page_alloc::zone::ZoneId;
use crate::page_alloc::{FrameState, FreeHook, MigrateType, Pfn, PfnRange};
use crate::reporting::batch::Batch;
use crate::reporting::config::Holding;
use crate::reporting::hold::{Attempt, hold};
use crate::reporting::schedule::Schedule;

/// `PAGE_REPORTING_CAPACITY` times 16: a pass reports about a sixteenth of a list.
const BUDGET_SHARE: u64 = 32 * 16;

/// [`TrackerKind::ReportedFlag`](super::kind::TrackerKind::ReportedFlag). The flags are on the free
/// blocks; this remembers only that something was freed.
#[derive(Debug)]
pub(in super::super) struct ReportedFlag {
    order: u8,
    passes: Arc<Schedule>,
}

impl ReportedFlag {
    pub(super) fn new(order: u8, passes: Arc<Schedule>) -> Self {
        Self { order, passes }
    }
}

impl FreeHook for ReportedFlag {
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

impl ReportedFlag {
    /// Makes a pass; true if another one must follow.
    pub(in super::super) fn pass(&self, batch: &mut Batch<'_>) -> bool {
        let mut again = false;
        for zone in 0..batch.mm.zone_count() {
            if batch.stats.failed {
                break;
            }
            if zone_is_low(batch, ZoneId(zone)) {
                batch.stats.low_memory += 1;
                if batch.config.watermark_guard {
                    continue;
                }
            }
            'lists: for order in batch.config.granule_order..=batch.mm.geometry().max_order {
                for &mt in MigrateType::ALL {
                    if mt == MigrateType::Isolate {
                        continue;
                    }
                    again |= cycle(ZoneId(zone), order, mt, batch);
                    if batch.stats.failed {
                        break 'lists;
                    }
                }
            }
            batch.submit(None);
        }
        again || batch.stats.failed
    }
}

fn zone_is_low(batch: &Batch<'_>, zone: ZoneId) -> bool {
    let zone = batch.mm.zone(zone);
    let reserve = (batch.config.batch as u64) << batch.config.granule_order;
    !zone.watermark_ok(0, zone.watermarks().low + reserve, true)
}

/// Walks one free list; true if there is more for another pass (`page_reporting_cycle`).
fn cycle(id: ZoneId, order: u8, mt: MigrateType, batch: &mut Batch<'_>) -> bool {
    let mm = batch.mm;
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
                match batch.config.holding {
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
        let more = isolate_wanted(&wanted, order, batch);
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
fn isolate_wanted(wanted: &[Pfn], order: u8, batch: &mut Batch<'_>) -> bool {
    let mut again = false;
    for &pfn in wanted {
        match hold(batch.mm, &batch.config, pfn, order) {
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
