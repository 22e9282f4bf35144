// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What must hold, and how it did not.

use alloc::string::String;

/// What must hold in every operation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Rule {
    /// A page's lock is taken only while the page is the page table that was looked up.
    LockOfALivePageTable,
    /// An entry is written only to a page table that the address space has installed.
    EntryInAnInstalledTable,
    /// The share count of a page table is the number of address spaces beside the first that have it
    /// installed, and one that is freed has neither users nor entries.
    ShareCountMatchesUsers,
    /// Only a VMA that covers all that a page table maps shares it.
    OnlyWholeVmasShare,
    /// A folio that was removed from the file is mapped nowhere.
    NoMappingOfARemovedFolio,
    /// No folio stays beyond the end of the file.
    NoFolioBeyondTheEnd,
    /// Each folio is either free or in the file.
    PoolBalances,
    /// GUP-fast returns pages of its own address space only.
    GupFastReturnsOwnPages,
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Broken {
    /// The rule.
    pub rule: Rule,
    /// What was seen.
    pub what: String,
}

impl Broken {
    pub(super) fn new(rule: Rule, what: impl Into<String>) -> Self {
        Self { rule, what: what.into() }
    }
}
