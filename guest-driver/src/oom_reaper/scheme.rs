// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the reaper does about notifiers.

use crate::address_space::{Asks, NotifyFlaw, Step};

/// What the reaper does about notifiers.
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
pub enum Scheme {
    /// Each notifier may wait.
    AlwaysBlock,
    /// An address space that has a notifier is not reaped.
    SkipNotified,
    /// A notifier must not wait. Each fails, whatever the range.
    BailOut,
    /// A notifier must not wait. It fails if the range is of interest to it.
    DriverRange,
    /// The core asks the notifiers whose interest an interval tree finds. Each of them fails.
    IntervalTree,
    /// As `interval-tree`, a chunk of a VMA at a time: an interest forfeits its chunk, not the VMA.
    IntervalTreeChunks,
    /// The notifiers that the tree finds try their locks.
    TryLock,
    /// As `try-lock`, a chunk of a VMA at a time.
    TryLockChunks,
    /// As `try-lock`. A notifier whose lock is held marks the range, and the pages are freed when those that
    /// use the device have left it.
    Deferred,
}

impl Scheme {
    /// All of them.
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Which notifiers are asked.
    pub fn asks(self) -> Asks {
        match self {
            Self::AlwaysBlock | Self::SkipNotified | Self::BailOut => Asks::All,
            Self::DriverRange => Asks::DriverTests,
            _ => Asks::Tree,
        }
    }

    /// How far a notifier may go.
    pub fn step(self) -> Step {
        match self {
            Self::AlwaysBlock => Step::Block,
            Self::TryLock | Self::TryLockChunks => Step::Try,
            Self::Deferred => Step::Defer,
            _ => Step::Bail,
        }
    }

    /// Whether a VMA is reaped a chunk at a time.
    pub fn is_chunked(self) -> bool {
        matches!(self, Self::IntervalTreeChunks | Self::TryLockChunks)
    }

    /// Whether memory that is of no interest to a notifier is always reaped.
    pub fn looks_at_the_range(self) -> bool {
        self.asks() != Asks::All
    }
}

/// A mistake of the reaper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It waits for the mmap lock.
    WaitsForMmapLock,
    /// It tries until nothing is left.
    TriesUntilDone,
    /// It does not look whether the process has exited.
    IgnoresExit,
    /// It clears page table entries without the page table's lock.
    ZapsWithoutLock,
    /// A mistake of the core.
    Core(NotifyFlaw),
}
