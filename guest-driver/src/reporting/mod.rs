// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter: finds free memory that the host does not know of, holds it, reports it, and lets
//! it go (Linux's `mm/page_reporting.c` for [`TrackerKind::ReportedFlag`] with [`Holding::Pull`]).
//!
//! Two questions of November 2019 are values here: how to remember what still needs reporting
//! ([`TrackerKind`]), and how to keep reported pages from being allocated meanwhile ([`Holding`]).
//!
//! A pass is made when it is due: one delay after the first free that needs reporting, by a [`Clock`]
//! that is the machine's or stands still until a test moves it ([`Schedule`]).

mod clock;
mod hold;

mod reporter;
mod schedule;
pub mod tracker;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use core::time::Duration;

use crate::page_alloc::PfnRange;

pub use clock::{Clock, RealClock, VirtualClock};
pub use reporter::{AlreadyRegistered, PassStats, Reporter};
pub use schedule::Schedule;
pub use tracker::{Tracker, TrackerFlaw, TrackerKind};

/// Who takes reports: the balloon driver, or a test.
pub trait ReportSink {
    /// Reports `ranges`, at most [`ReportSink::capacity`] of them, and returns when the host has
    /// acknowledged them. Until then the pages belong to the host. It waits no longer than
    /// `timeout`, if there is one.
    ///
    /// # Errors
    /// If it was not acknowledged; the pages are not taken for reported then.
    fn report(&mut self, ranges: &[PfnRange], timeout: Option<Duration>)
    -> Result<(), ReportError>;

    /// Whether the report that has failed with [`ReportError::Timeout`] is acknowledged by now.
    /// Asked before every pass until it is, and nothing is reported meanwhile. It does not wait.
    fn settle(&mut self) -> bool;

    /// The most ranges in one report.
    fn capacity(&self) -> usize;
}

/// Why a report failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The device took it and did not give it back in time. Its pages may not be let go until it
    /// does: the host may still discard them.
    #[error("the host has not acknowledged the report in time")]
    Timeout,
    /// The device did not take it.
    #[error("the report was not taken")]
    Refused,
}

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

/// What to do with a granule that somebody else isolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnBusy {
    /// It stays marked. Its holder may let it go without freeing anything.
    Requeue,
    /// It is forgotten. Known to be wrong.
    Drop,
}

/// What to do with the pages of a report that was not acknowledged in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnTimeout {
    /// They stay held until the acknowledgement comes after all, and count as reported then.
    Hold,
    /// They are let go and marked again. Known to be wrong: the host may discard them when they are
    /// in use.
    LetGo,
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
    /// How long a report waits for its acknowledgement; without one as long as it takes, as in
    /// mainline.
    pub acknowledge_timeout: Option<Duration>,
    /// What to do when that is over.
    pub on_timeout: OnTimeout,
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
