// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list of schemes, and of their mistakes.

use crate::swapped::{CountedFlaw, EpochFlaw};

/// A way to update where allocations may go.
///
/// The one list of schemes: names, the lab's choices and the explorer's configurations follow from it.
///
/// ```
/// use guest_driver::placement::Scheme;
///
/// assert_eq!(Scheme::CheckAtRetry.name(), "check-at-retry");
/// assert_eq!("no-rebind".parse(), Ok(Scheme::NoRebind));
/// ```
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
    /// Overwrites the task's nodes and rebinds its policies, and tells no reader.
    InPlace,
    /// Adds the new nodes before it removes the old ones. The sequence count changes only if the task
    /// has a policy, or keeps no node, and is looked at after the allocation has failed (2.6.34 to 4.9).
    TwoStep,
    /// The same, and the slow path looks before the OOM killer, with a sequence count that it has read
    /// itself, after the policy's nodes were chosen (4.10).
    TwoScopes,
    /// The sequence count always changes. Before the OOM killer and before it fails an allocation also
    /// looks whether its nodemask and the cpuset intersect, and goes on without the nodemask if not
    /// (4.13).
    IntersectionCheck,
    /// The same also before each try of the slow path (6.16).
    CheckAtRetry,
    /// The same after reclaim, instead of before each try (7.3).
    CheckAfterReclaim,
    /// Leaves policies as they are, but for relative ones, and drops a nodemask that does not intersect
    /// the cpuset. Proposed in February 2017 and never built.
    NoRebind,
    /// Swaps an updated copy of a cpuset's nodes in, and of each policy that follows them. Its last
    /// reference frees the one of before; an atomic count in the copy counts them. Considered in February
    /// 2017 and never built.
    CountedCopy,
    /// The same, freed when all allocations of before are through, by counts a CPU and epoch. Counts a CPU
    /// were considered in 2017, and never built.
    EpochCopy,
    /// Each cpuset has zonelists of its own, with the zones of its nodes; an update swaps another set in.
    /// The last reference frees the one of before. The kernel's own pages come from the system's
    /// zonelists. Proposed in February 2017 and never built.
    CountedZonelists,
    /// The same, and the kernel's own pages come from lists that have the cpuset's nodes first, and then
    /// all others.
    SoftwallZonelists,
    /// Zonelists a cpuset, walked under a lock of the cpuset that an update takes alone. Reclaim is
    /// without the lock.
    LockedZonelists,
}

impl Scheme {
    /// All of them, in the order of their declaration.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;
    /// Their names, in the same order.
    pub const NAMES: &[&str] = <Self as strum::VariantNames>::VARIANTS;

    /// Its name on command lines and in tables, which [`str::parse`] reads.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A mistake that a scheme can make. Each is known to be wrong: it is there for the explorer to find.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Flaw {
    /// A rebound policy remembers its own new nodes in the place of the cpuset's (4.13 to 5.2).
    RemembersPolicyNodes,
    /// Looks at the sequence count only, not at whether nodemask and cpuset intersect.
    TrustsSequenceCount,
    /// A copy that was swapped out is freed at once.
    SwapsWithoutGrace,
    /// A reader increments the count of a copy, whatever it is by then.
    CountsBlindly,
    /// A reader that has counted does not look whether the copy still is the current one.
    CountsWithoutLook,
    /// A grace period waits for the readers of one of the two epochs.
    WaitsForOneEpoch,
    /// A copy that is swapped out during a grace period is freed with it.
    JoinsGracePeriod,
    /// An allocation that has found nothing does not look whether the nodes that it looked at are still
    /// the current ones.
    TrustsItsCopy,
    /// An update swaps each copy in as soon as it is allocated.
    SwapsOneByOne,
    /// Reclaim keeps the lock under which zonelists are walked.
    LocksAcrossReclaim,
}

impl Flaw {
    /// All of them.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Its name on command lines and in tables.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// What it means to those that free copies.
    pub(super) fn of_grace(self) -> (Option<CountedFlaw>, Option<EpochFlaw>) {
        match self {
            Self::SwapsWithoutGrace => {
                (Some(CountedFlaw::FreedAtOnce), Some(EpochFlaw::FreedAtOnce))
            }
            Self::CountsBlindly => (Some(CountedFlaw::NoLookAgain), None),
            Self::CountsWithoutLook => (Some(CountedFlaw::OnlyUnlessZero), None),
            Self::WaitsForOneEpoch => (None, Some(EpochFlaw::OneEpoch)),
            Self::JoinsGracePeriod => (None, Some(EpochFlaw::JoinsLate)),
            _ => (None, None),
        }
    }
}
