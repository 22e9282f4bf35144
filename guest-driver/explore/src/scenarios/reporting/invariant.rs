// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What must hold.

use crate::Invariant;

/// What must hold in every schedule.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Holds {
    /// From submitting to acknowledging a report no page in it is allocated, and no page in use loses
    /// its contents.
    NoReportedPageInUse,
    /// When all is quiet, every free block that is large enough has been reported, but for those that
    /// are remembered until their zone can spare a block of the largest order.
    EveryFreeBlockReported,
    /// The allocator's counters and lists agree with the frames.
    CountersMatchFrames,
    /// A pageblock has one isolator, and that one ends the isolation.
    OneIsolatorPerPageblock,
    /// A pageblock has the same migratetype after a report as before.
    MigratetypeKept,
    /// Offlining ends: in success where everything can be moved. Where something cannot, it is refused,
    /// and nothing has moved.
    OffliningEnds,
    /// No allocation fails because reports withhold memory.
    NoOomWhileWithheld,
    /// No allocation fails while a zone that it may use could serve it, whatever is reported, goes off- or
    /// online, or becomes another's.
    NoOomWhileAZoneCanServe,
    /// A reporter on a quiet guest comes to rest.
    QuietGuestRests,
    /// Once suspending has returned, no free reaches the reporter.
    SilentWhileSuspended,
    /// When a section has gone offline, nothing of it is remembered.
    OfflineSectionForgotten,
    /// A page that is allocated as zero holds no old data.
    ZeroedPageHoldsZero,
    /// Every wait can end.
    EveryWaitEnds,
    /// The model's own assertions hold.
    ModelAssertionsHold,
}

impl Invariant for Holds {
    const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;
    const ASSERTIONS: Self = Self::ModelAssertionsHold;
    const DEADLOCK: Self = Self::EveryWaitEnds;

    fn name(self) -> &'static str {
        self.into()
    }

    fn broken(self) -> &'static str {
        match self {
            Self::NoReportedPageInUse => "a page is reported and in use",
            Self::EveryFreeBlockReported => "a report is lost",
            Self::CountersMatchFrames => "counters and frames disagree",
            Self::OneIsolatorPerPageblock => "a pageblock has two isolators",
            Self::MigratetypeKept => "a pageblock has changed its migratetype",
            Self::OffliningEnds => "offlining does not end",
            Self::NoOomWhileWithheld => "an allocation fails while reports withhold memory",
            Self::NoOomWhileAZoneCanServe => "an allocation fails although a zone could serve it",
            Self::QuietGuestRests => "a quiet guest goes on reporting",
            Self::SilentWhileSuspended => "a free reaches a suspended reporter",
            Self::OfflineSectionForgotten => "an offline section is remembered",
            Self::ZeroedPageHoldsZero => "a page is given out as zero and holds old data",
            Self::EveryWaitEnds => "a wait never ends",
            Self::ModelAssertionsHold => "an assertion of the model fails",
        }
    }
}
