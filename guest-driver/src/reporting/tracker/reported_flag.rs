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

    fn after_insert(&self, _head: Pfn, _order: u8, _freed: PfnRange) {
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
                continue;
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
        // A report that failed asks for nothing, as in mainline.
        again
    }
}

fn zone_is_low(batch: &Batch<'_>, zone: ZoneId) -> bool {
    let reserve = (batch.config.batch as u64) << batch.config.granule_order;
    !batch.config.watermark_guard.spares(batch.mm, zone, reserve)
}

/// Where a walk along a list has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// At the end of the list.
    Through,
    /// At a block for which the batch has no room.
    Full,
    /// At a block that the zone cannot spare.
    Low,
    /// At a block that is for another pass.
    OverBudget,
}

/// Walks one free list; true if there is more for another pass (`page_reporting_cycle`).
///
/// A batch is reported when there is a block for which it has no room. One that is full at the end of
/// the list goes on to the next list, or is the last of its zone.
fn cycle(id: ZoneId, order: u8, mt: MigrateType, batch: &mut Batch<'_>) -> bool {
    let zone = batch.mm.zone(id);
    let mut attempts = {
        let area = zone.lock();
        if area.first(order, mt).is_none() {
            return false;
        }
        area.nr_free[usize::from(order)]
    };
    let mut budget = attempts.div_ceil(BUDGET_SHARE).cast_signed();
    let mut again = false;
    loop {
        let (wanted, ended) = walk(id, order, mt, budget, batch);
        attempts = attempts.saturating_sub(wanted.len() as u64);
        again |= isolate_wanted(&wanted, order, batch);
        match ended {
            Ended::Through | Ended::Low => return again,
            Ended::OverBudget => return true,
            // Blocks that could not be isolated have left room.
            Ended::Full if batch.held.len() < batch.capacity() => {
                if attempts == 0 {
                    return true;
                }
            }
            Ended::Full => {
                batch.submit(None);
                if batch.stats.failed {
                    return again;
                }
                budget -= 1;
            }
        }
    }
}

/// Takes blocks that were not reported off a list, as many as the batch has room for. Those to be
/// isolated are returned, since isolating takes the zone's lock by itself.
fn walk(
    id: ZoneId,
    order: u8,
    mt: MigrateType,
    budget: i64,
    batch: &mut Batch<'_>,
) -> (Vec<Pfn>, Ended) {
    let mm = batch.mm;
    let mut wanted = Vec::new();
    let mut area = mm.zone(id).lock();
    let mut at = area.first(order, mt);
    while let Some(pfn) = at {
        at = mm.next_free(pfn);
        if mm.state(pfn) != (FrameState::Buddy { order, reported: false }) {
            continue;
        }
        if budget < 0 {
            mm.rotate_to(&mut area, order, mt, pfn);
            return (wanted, Ended::OverBudget);
        }
        if batch.held.len() + wanted.len() >= batch.capacity() {
            mm.rotate_to(&mut area, order, mt, pfn);
            return (wanted, Ended::Full);
        }
        batch.stats.offered += 1;
        match batch.config.holding {
            Holding::Pull => {
                if !mm.isolate_free_page(id, &mut area, pfn, order) {
                    batch.stats.low_memory += 1;
                    mm.rotate_to(&mut area, order, mt, pfn);
                    return (wanted, Ended::Low);
                }
                batch.push(PfnRange::block(pfn, order));
            }
            Holding::Isolate => wanted.push(pfn),
        }
    }
    (wanted, Ended::Through)
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
            Attempt::LowMemory { .. } => {
                batch.stats.low_memory += 1;
                return true;
            }
        }
    }
    again
}
