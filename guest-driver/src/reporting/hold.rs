// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two ways to keep reported pages from being allocated.

use super::config::{Config, Holding, HotplugLock};
use crate::page_alloc::{FrameState, IsolateMode, MigrateType, Mm, Pfn, PfnRange, ZoneId};

/// What came of an attempt to hold a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// These pages are held; at least the granule, and all of the free block that it is in.
    Held(PfnRange),
    /// It is not free, by a look without a lock.
    NotFree,
    /// Another isolator holds it, or another has the hotplug lock, for which this does not wait.
    Busy,
    /// It was no longer free when it was isolated.
    LostRace,
    /// The zone cannot spare so many pages.
    LowMemory {
        /// The zone.
        zone: ZoneId,
        /// What it had to spare.
        pages: u64,
    },
}

/// The free block of at least `order` that `granule` is in.
///
/// Looked for without a lock, and once more with it where that look may mislead: while a free block
/// is split or merged its parts look as if they were in use, and no later free will mark them again.
fn find(mm: &Mm, granule: Pfn, order: u8, look_again: bool) -> Option<(Pfn, u8)> {
    let look = || mm.buddy_around(granule).filter(|&(_, found)| found >= order);
    if !look_again {
        return look();
    }
    look().or_else(|| match mm.state(granule) {
        // Its user will free it.
        FrameState::Allocated { .. }
        | FrameState::Pcp { .. }
        | FrameState::Held { .. }
        | FrameState::Absent => None,
        FrameState::Buddy { .. } | FrameState::Tail => {
            let _locked = mm.lock_zone_of(granule)?;
            look()
        }
    })
}

/// Tries to hold the free block around `granule`, a block of `order`, or that granule alone.
pub(super) fn hold(mm: &Mm, config: &Config, granule: Pfn, order: u8) -> Attempt {
    let &Config { holding, watermark_guard, look_again, .. } = config;
    let _online = match config.hotplug_lock {
        HotplugLock::None => None,
        HotplugLock::Waits => Some(mm.lock_hotplug()),
        HotplugLock::Tries => match mm.try_lock_hotplug() {
            None => return Attempt::Busy,
            locked => locked,
        },
    };
    loop {
        let Some((head, found)) = find(mm, granule, order, look_again) else {
            return Attempt::NotFree;
        };
        let Some(id) = mm.zone_of(head) else { return Attempt::NotFree };
        let block = PfnRange::block(head, found);
        let whole = config.tracker.reports_whole_blocks();
        let range = if whole { block } else { PfnRange::block(granule, order) };
        let zone = mm.zone(id);
        // A part is pulled out of the whole block, which the zone lacks for a moment.
        let taken = if holding == Holding::Pull { block } else { range };
        let pages = u64::from(taken.pages());
        let low = Attempt::LowMemory { zone: id, pages };
        if !watermark_guard.spares(mm, id, pages) {
            return low;
        }
        match holding {
            Holding::Isolate => {
                if mm.start_isolate_page_range(range, IsolateMode::Report).is_err() {
                    return Attempt::Busy;
                }
                if mm.test_pages_isolated(range).is_ok() {
                    return Attempt::Held(range);
                }
                undo(mm, range);
                if found == order || !look_again {
                    return Attempt::LostRace;
                }
                // Part of a larger block was taken, and the granule may be free still.
            }
            Holding::Pull => {
                let mut area = zone.lock();
                if mm.zone_of(head) == Some(id) && mm.state(head).buddy_order() == Some(found) {
                    if mm.is_isolated(head) {
                        return Attempt::Busy;
                    }
                    let held = match whole {
                        true => mm.isolate_free_page(id, &mut area, head, found),
                        false => mm.isolate_free_part(id, &mut area, (head, found), granule, order),
                    };
                    return match held {
                        true => Attempt::Held(range),
                        false => low,
                    };
                }
                if !look_again {
                    return Attempt::LostRace;
                }
                // Split, merged or taken meanwhile: look once more.
            }
        }
    }
}

/// Holds the free block of at least `order` around `granule` as a pass does, calls `reported` with its
/// frames, and releases it as reported; false if it could not be held. For measurements of one block.
pub fn hold_while(
    mm: &Mm,
    config: &Config,
    (granule, order): (Pfn, u8),
    reported: impl FnOnce(PfnRange),
) -> bool {
    let Attempt::Held(range) = hold(mm, config, granule, order) else { return false };
    reported(range);
    release(mm, config, range, true);
    true
}

/// Ends an isolation of pages that were not reported. Kernels whose isolation forgets a pageblock's
/// migratetype need it from the caller, and a reporter cannot know it.
fn undo(mm: &Mm, range: PfnRange) {
    mm.undo_isolate_page_range(range, Some(MigrateType::Movable));
}

/// Releases held pages, `reported` or not.
pub(super) fn release(mm: &Mm, config: &Config, range: PfnRange, reported: bool) {
    match config.holding {
        Holding::Isolate if reported => mm.undo_reported(range, config.tracker.flags_blocks()),
        Holding::Isolate => undo(mm, range),
        Holding::Pull => {
            let FrameState::Held { order } = mm.state(range.start) else {
                unreachable!("{:?} was held and is {:?}", range.start, mm.state(range.start));
            };
            if let Some(id) = mm.zone_of(range.start) {
                let mut area = mm.zone(id).lock();
                mm.putback_isolated_page(id, &mut area, range.start, order, reported);
            }
        }
    }
}
