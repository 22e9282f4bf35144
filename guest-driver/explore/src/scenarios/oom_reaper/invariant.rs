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
    /// The reaper waits for nothing that waits for reclaim, directly or further away.
    ReaperWaitsForNoReclaim,
    /// Each start of an invalidation that succeeds has one end, and one that fails has none.
    EachStartHasOneEnd,
    /// A page is freed after the last secondary MMU that maps it has dropped it.
    FreedAfterLastInvalidation,
    /// The reaper ends after a bounded number of attempts.
    AttemptsAreBounded,
    /// Reaper and exit free nothing twice.
    NothingFreedTwice,
    /// No page table is walked once it is freed.
    NoFreedTableIsWalked,
    /// When all is quiet, every page that has left the address space is freed.
    WhatLeavesIsFreed,
    /// The reaper leaves huge pages and the like as they are.
    OnlyPrivateMemoryIsReaped,
    /// A scheme that looks at the range reaps all that nothing mirrors.
    UnmirroredMemoryIsReaped,
    /// The model's own assertions hold.
    ModelAssertionsHold,
}

impl Invariant for Holds {
    const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;
    const ASSERTIONS: Self = Self::ModelAssertionsHold;
    const DEADLOCK: Self = Self::ReaperWaitsForNoReclaim;
    const USE_AFTER_FREE: Self = Self::NoFreedTableIsWalked;

    fn name(self) -> &'static str {
        self.into()
    }

    fn broken(self) -> &'static str {
        match self {
            Self::ReaperWaitsForNoReclaim => "a wait never ends",
            Self::EachStartHasOneEnd => "starts and ends of an invalidation do not match",
            Self::FreedAfterLastInvalidation => "a secondary MMU maps a page that is freed",
            Self::AttemptsAreBounded => "the reaper tries on and on",
            Self::NothingFreedTwice => "a page is freed twice",
            Self::NoFreedTableIsWalked => "a page table is walked after it is freed",
            Self::WhatLeavesIsFreed => "a page has left the address space and is never freed",
            Self::OnlyPrivateMemoryIsReaped => "memory is reaped that is not private",
            Self::UnmirroredMemoryIsReaped => "memory that nothing mirrors is not reaped",
            Self::ModelAssertionsHold => "an assertion of the model fails",
        }
    }
}
