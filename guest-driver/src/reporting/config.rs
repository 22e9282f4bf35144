// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a reporter works.

use core::time::Duration;

use super::tracker::kind::{TrackerFlaw, TrackerKind};
use crate::page_alloc::Mm;
use crate::page_alloc::zone::{Zone, ZoneId};

/// How reported pages are kept from being allocated.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Holding {
    /// Their pageblocks are isolated: start, test, undo. Other isolators see that they are busy.
    Isolate,
    /// They are taken off the free lists, as in mainline.
    Pull,
}

impl Holding {
    /// Both ways.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;
    /// Their names, in the same order.
    pub const NAMES: &[&str] = <Self as strum::VariantNames>::VARIANTS;

    /// Its name on command lines and in tables, which [`str::parse`] reads.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What to do with a granule that another isolator holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnBusy {
    /// It stays marked. Its isolator may release it without freeing anything.
    Requeue,
    /// It is forgotten. Known to be wrong.
    Drop,
}

/// What to do with the pages of a report that was not acknowledged in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnTimeout {
    /// They stay held until the acknowledgement comes after all, and count as reported then.
    Hold,
    /// They are released and marked again. Known to be wrong: the host may discard them while they
    /// are in use.
    LetGo,
}

/// What a pass leaves of free memory. An allocation that may use one node only is served from the zones of
/// that node, so what others have does not help it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WatermarkGuard {
    /// What would take the zone below its low watermark.
    Zone,
    /// What would take all zones together below the sum of theirs. Known to be wrong.
    Memory,
    /// Nothing. Known to be wrong.
    None,
}

impl WatermarkGuard {
    /// Whether `pages` of `zone` can be held.
    pub(super) fn spares(self, mm: &Mm, zone: ZoneId, pages: u64) -> bool {
        match self {
            Self::Zone => {
                let zone = mm.zone(zone);
                zone.watermark_ok(0, zone.watermarks().low + pages, true)
            }
            Self::Memory => {
                let zones = || (0..mm.zone_count()).map(|zone| mm.zone(ZoneId(zone)));
                let low: u64 = zones().map(|zone| zone.watermarks().low).sum();
                zones().map(Zone::free_pages).sum::<u64>() > low + pages
            }
            Self::None => true,
        }
    }
}

/// How a look for a free block takes the hotplug lock, as Linux must to look at the memory map of a section
/// (`get_online_mems`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HotplugLock {
    /// Not at all: frames of the model stay.
    None,
    /// It waits. Known to be wrong where its holder waits for the reporter: an offliner for blocks that
    /// are pulled, an onliner for the tracker to grow.
    Waits,
    /// It does not wait: while another has the lock, the granule is marked again.
    Tries,
}

/// Which reports leave their pages known to be zero, so that they are not cleared again
/// ([`Mm::alloc_zeroed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroReports {
    /// None, where the device says nothing of it.
    None,
    /// Those of which the device says so ([`ReportSink::is_zero`](super::ReportSink::is_zero)).
    AsTold,
    /// All that are acknowledged. Known to be wrong: a device may keep what it likes.
    All,
}

/// How a reporter works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How the reporter remembers what needs reporting.
    pub tracker: TrackerKind,
    /// A mistake that the tracker makes on purpose; none in a reporter that is meant to work.
    pub flaw: Option<TrackerFlaw>,
    /// How reported pages are held.
    pub holding: Holding,
    /// The smallest block that is reported and what the tracker counts in, an order; at least a
    /// pageblock for [`Holding::Isolate`].
    pub granule_order: u8,
    /// The most granules in one report; the device may take fewer.
    pub batch: usize,
    /// From the first free that needs reporting to the pass (`PAGE_REPORTING_DELAY`), and from a
    /// pass that has left something to the next.
    pub delay: Duration,
    /// How long a report waits for its acknowledgement; without one it never ends, as in
    /// mainline.
    pub acknowledge_timeout: Option<Duration>,
    /// What to do when that time is over.
    pub on_timeout: OnTimeout,
    /// What a pass leaves of free memory.
    pub watermark_guard: WatermarkGuard,
    /// What to do with granules that another isolator holds.
    pub on_busy: OnBusy,
    /// How each look for a free block takes the hotplug lock.
    pub hotplug_lock: HotplugLock,
    /// Whether the tracker has room only for the sections that are there, and grows before others come
    /// online. A pass keeps it from growing.
    pub grows: bool,
    /// Whether a granule that does not look free is looked at again, with the zone's lock held,
    /// before its mark is forgotten. Known to be wrong without: a
    /// free block that is being split or merged looks as if its parts were in use.
    pub look_again: bool,
    /// Which reports leave their pages known to be zero.
    pub zero_reports: ZeroReports,
}

impl Config {
    /// A bit a section with isolation, the scheme with which the discussion of 2019 ended, at
    /// Linux's sizes.
    pub const DEFAULT: Self = Self {
        tracker: TrackerKind::SectionBit,
        flaw: None,
        holding: Holding::Isolate,
        granule_order: 9,
        batch: 32,
        delay: Duration::from_secs(2),
        acknowledge_timeout: None,
        on_timeout: OnTimeout::Hold,
        watermark_guard: WatermarkGuard::Zone,
        on_busy: OnBusy::Requeue,
        hotplug_lock: HotplugLock::None,
        grows: false,
        look_again: true,
        zero_reports: ZeroReports::None,
    };
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}
