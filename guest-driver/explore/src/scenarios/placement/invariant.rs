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
    /// No allocation fails and no OOM killer is invoked if, whatever of the updates beside it had
    /// happened, a node with free memory was allowed.
    NoOomWhileANodeCanServe,
    /// A page comes from a node that was allowed at some time during its allocation.
    PageFromAValidNode,
    /// The slow path tries no more often than once, and once again for each update beside it.
    TriesBoundedByUpdates,
    /// When its cpuset has the nodes again that it was made for, a policy has its own again. Between
    /// cpusets of a size it keeps the number of its nodes.
    PolicyComesBack,
    /// Nothing that an update has freed is used.
    NothingFreedIsUsed,
    /// An update that fails has changed nothing.
    FailedUpdateChangesNothing,
    /// When all is quiet, what updates have swapped out is freed.
    EveryCopyIsFreed,
    /// Every wait can end.
    EveryWaitEnds,
    /// The model's own assertions hold.
    ModelAssertionsHold,
}

impl Invariant for Holds {
    const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;
    const ASSERTIONS: Self = Self::ModelAssertionsHold;
    const DEADLOCK: Self = Self::EveryWaitEnds;
    const USE_AFTER_FREE: Self = Self::NothingFreedIsUsed;

    fn name(self) -> &'static str {
        self.into()
    }

    fn broken(self) -> &'static str {
        match self {
            Self::NoOomWhileANodeCanServe => "out of memory while an allowed node has some",
            Self::PageFromAValidNode => "a page comes from a node that was never allowed",
            Self::TriesBoundedByUpdates => "an allocation tries on and on",
            Self::PolicyComesBack => "a policy has lost its nodes",
            Self::NothingFreedIsUsed => "something freed is used",
            Self::FailedUpdateChangesNothing => "an update that failed has changed something",
            Self::EveryCopyIsFreed => "a copy is never freed",
            Self::EveryWaitEnds => "a wait never ends",
            Self::ModelAssertionsHold => "an assertion of the model fails",
        }
    }
}
