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
    /// No allocation fails and no OOM killer is invoked while a zone that may serve it has free memory
    /// throughout.
    NoOomWhileAZoneCanServe,
    /// A page comes from a zone that may hold such pages, of a node of the nodemask.
    PageFromAnEligibleZone,
    /// A walk visits each zone that has memory throughout.
    WalkMissesNoZone,
    /// A walk visits no zone twice.
    WalkVisitsOnce,
    /// The slow path tries no more often than once, and twice for each update beside it: one try finds
    /// nothing, and the next look tells of the update.
    TriesBoundedByRebuilds,
    /// However often a zone was visited, counters and lists agree with the frames.
    CountersMatchFrames,
    /// No list that an update has freed is read.
    NoFreedListIsRead,
    /// Every wait of a reader, an interrupt handler or the writer can end.
    NoDeadlockWithTheWriter,
    /// The model's own assertions hold; no walk leaves its list.
    ModelAssertionsHold,
}

impl Invariant for Holds {
    const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;
    const ASSERTIONS: Self = Self::ModelAssertionsHold;
    const DEADLOCK: Self = Self::NoDeadlockWithTheWriter;
    const USE_AFTER_FREE: Self = Self::NoFreedListIsRead;

    fn name(self) -> &'static str {
        self.into()
    }

    fn broken(self) -> &'static str {
        match self {
            Self::NoOomWhileAZoneCanServe => "out of memory while a zone has some",
            Self::PageFromAnEligibleZone => "a page comes from a zone that must not serve it",
            Self::WalkMissesNoZone => "a walk misses a zone",
            Self::WalkVisitsOnce => "a walk visits a zone twice",
            Self::TriesBoundedByRebuilds => "an allocation tries on and on",
            Self::CountersMatchFrames => "counters and frames disagree",
            Self::NoFreedListIsRead => "a freed list is read",
            Self::NoDeadlockWithTheWriter => "a wait never ends",
            Self::ModelAssertionsHold => "an assertion of the model fails",
        }
    }
}
