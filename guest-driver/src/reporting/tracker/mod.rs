// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to remember what still needs reporting.

mod granules;
pub(super) mod growing;
pub(super) mod kind;
pub(super) mod marks;
mod reported_flag;
mod section_bit;
mod section_bitmap;
mod zone_bitmap;
mod zone_bitmap_rcu;

use alloc::sync::Arc;

use super::config::Config;
use super::schedule::Schedule;
use crate::page_alloc::{FreeHook, Mm};
use granules::Granules;
use kind::TrackerKind;
use marks::Marks;
use reported_flag::ReportedFlag;
use section_bit::SectionBit;
use section_bitmap::SectionBitmap;
use zone_bitmap::ZoneBitmap;
use zone_bitmap_rcu::ZoneBitmapRcu;

/// Remembers what needs reporting.
pub(super) enum Tracker {
    /// In marks beside the pages.
    Marks(Arc<dyn Marks>),
    /// In flags on the free blocks.
    Flags(Arc<ReportedFlag>),
}

impl Tracker {
    /// What sees the frees.
    pub(super) fn hook(&self) -> Arc<dyn FreeHook> {
        match self {
            Self::Marks(marks) => Arc::clone(marks).hook(),
            Self::Flags(flags) => Arc::clone(flags) as Arc<dyn FreeHook>,
        }
    }
}

/// A tracker for `mm`, which requests a pass of `passes` when something is freed.
pub(super) fn new(config: &Config, mm: &Mm, passes: Arc<Schedule>) -> Tracker {
    let flaw = config.flaw;
    let granules = Granules::new(mm, config.granule_order);
    Tracker::Marks(match config.tracker {
        TrackerKind::ZoneBitmap => Arc::new(ZoneBitmap::new(granules, passes, flaw)),
        TrackerKind::ZoneBitmapRcu => Arc::new(ZoneBitmapRcu::new(granules, passes, flaw)),
        TrackerKind::SectionBitmap => Arc::new(SectionBitmap::new(granules, passes, false, flaw)),
        TrackerKind::SectionBitmapExact => {
            Arc::new(SectionBitmap::new(granules, passes, true, flaw))
        }
        TrackerKind::SectionBit => Arc::new(SectionBit::new(mm, granules, passes, false, flaw)),
        TrackerKind::SectionBitFlag => Arc::new(SectionBit::new(mm, granules, passes, true, flaw)),
        TrackerKind::ReportedFlag => {
            return Tracker::Flags(Arc::new(ReportedFlag::new(config.granule_order, passes)));
        }
    })
}
