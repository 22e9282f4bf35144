//! The reporter: finds free memory that the host does not know of, holds it, reports it, and lets
//! it go (section 2.9 of the reference; Linux's `mm/page_reporting.c` for tracker E with pulling).
//!
//! Two questions of November 2019 are values here: how to remember what still needs reporting
//! ([`TrackerKind`]), and how to keep reported pages from being allocated meanwhile ([`Holding`]).

mod hold;
mod mainline;
mod pass;
pub mod tracker;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use core::time::Duration;

use crate::mm::PfnRange;

pub use pass::{AlreadyRegistered, PassStats, Reporter};
pub use tracker::{Tracker, TrackerKind};

/// Who takes reports: the balloon driver, or a test.
pub trait ReportSink {
    /// Reports `ranges`, at most [`ReportSink::capacity`] of them, and returns when the host has
    /// acknowledged them. Until then the pages belong to the host.
    ///
    /// # Errors
    /// If it was not acknowledged; the pages are not taken for reported then.
    fn report(&mut self, ranges: &[PfnRange]) -> Result<(), ReportError>;

    /// The most ranges in one report.
    fn capacity(&self) -> usize;
}

/// Why a report failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The device took it and did not give it back in time. Its pages may not be let go: the host
    /// may still discard them.
    #[error("the host has not acknowledged the report in time")]
    Timeout,
    /// The device did not take it.
    #[error("the report was not taken")]
    Refused,
}

/// How reported pages are kept from being allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holding {
    /// Their pageblocks are isolated: start, test, undo. Other isolators see that they are busy.
    Isolate,
    /// They are taken off the free lists, as in mainline.
    Pull,
}

/// What to do with a granule that somebody else isolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnBusy {
    /// It stays marked. Its holder may let it go without freeing anything.
    Requeue,
    /// It is forgotten. Known to be wrong.
    Drop,
}

/// How a reporter works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How it is remembered what needs reporting.
    pub tracker: TrackerKind,
    /// How reported pages are held.
    pub holding: Holding,
    /// The smallest block that is reported and what the tracker counts in, an order; at least a
    /// pageblock for [`Holding::Isolate`].
    pub granule_order: u8,
    /// The most granules in one report; the device may take fewer.
    pub batch: usize,
    /// From the first free that needs reporting to the pass.
    pub delay: Duration,
    /// Whether a pass stops before what it holds takes a zone below its low watermark.
    pub watermark_guard: bool,
    /// What to do with what somebody else isolates.
    pub on_busy: OnBusy,
    /// Whether a granule that does not look free is looked at again, with the zone's lock held,
    /// before its mark is forgotten. Known to be wrong without: a
    /// free block that is being split or merged looks as if its parts were in use.
    pub look_again: bool,
}

impl Config {
    /// Tracker D with isolation, the scheme that message 002 ends with, at Linux's sizes.
    pub const DEFAULT: Self = Self {
        tracker: TrackerKind::SectionBit,
        holding: Holding::Isolate,
        granule_order: 9,
        batch: 32,
        delay: Duration::from_secs(2),
        watermark_guard: true,
        on_busy: OnBusy::Requeue,
        look_again: true,
    };
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}
