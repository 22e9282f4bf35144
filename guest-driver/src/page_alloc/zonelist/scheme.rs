// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list of ways to update zonelists, and of their mistakes.

/// How the lists are changed under allocations that walk them.
///
/// ```
/// use guest_driver::page_alloc::{KernelSemantics, ZonelistUpdate};
///
/// assert_eq!(KernelSemantics::V6_19.zonelists.name(), "sequence-count");
/// assert_eq!("rcu".parse(), Ok(ZonelistUpdate::Rcu));
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
pub enum ZonelistUpdate {
    /// All lists in one step, while every other CPU stands still (`stop_machine`). An allocation may stand
    /// anywhere in its walk: it is preempted, or sleeps. Before 4.14.
    StopMachine,
    /// A zoneref after the other, without a word to readers. From 4.14 to 6.0.
    Overwrite,
    /// Appends a copy of the list to its end, overwrites the front, and terminates that. Proposed in July
    /// 2017 and never built.
    AppendAndTerminate,
    /// Overwrites, with a sequence count that readers look at in their slow path. Interrupts come while it
    /// is odd. From 6.1 to 6.3.
    SequenceCountInterruptible,
    /// The same without interrupts. What is printed meanwhile goes to the console at once. In no release.
    SequenceCountPrinting,
    /// The same, and the console prints afterwards (`printk_deferred_enter`). Since 6.4.
    SequenceCount,
    /// Builds lists beside those that are walked, and swaps the pointer. The next update waits until no
    /// walk of before is in progress. Never built.
    Rcu,
}

impl ZonelistUpdate {
    /// All of them, in the order of their declaration.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;
    /// Their names, in the same order.
    pub const NAMES: &[&str] = <Self as strum::VariantNames>::VARIANTS;

    /// Its name on command lines and in tables, which [`str::parse`] reads.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether readers look at the sequence count.
    pub fn counts(self) -> bool {
        matches!(
            self,
            Self::SequenceCountInterruptible | Self::SequenceCountPrinting | Self::SequenceCount
        )
    }
}

/// A mistake that an update can make. Each is known to be wrong: it is there for the explorer to find.
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
pub enum ZonelistFlaw {
    /// The lists that were swapped out are freed at once.
    SwapsWithoutGrace,
}
