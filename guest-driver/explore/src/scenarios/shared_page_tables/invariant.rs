// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What must hold.

use crate::Invariant;
use guest_driver::hugetlb::Rule;

/// What must hold in every schedule.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Holds {
    /// A page's lock is taken only while the page is the page table that was looked up.
    LockOfALivePageTable,
    /// An entry is written only to a page table that the address space has installed.
    EntryInAnInstalledTable,
    /// The share count of a page table is the number of its users beside the first; one that is freed has
    /// neither users nor entries.
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
    /// No two tasks wait for each other's locks.
    LocksInOneOrder,
    /// The model's own assertions hold.
    ModelAssertionsHold,
}

impl From<Rule> for Holds {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::LockOfALivePageTable => Self::LockOfALivePageTable,
            Rule::EntryInAnInstalledTable => Self::EntryInAnInstalledTable,
            Rule::ShareCountMatchesUsers => Self::ShareCountMatchesUsers,
            Rule::OnlyWholeVmasShare => Self::OnlyWholeVmasShare,
            Rule::NoMappingOfARemovedFolio => Self::NoMappingOfARemovedFolio,
            Rule::NoFolioBeyondTheEnd => Self::NoFolioBeyondTheEnd,
            Rule::PoolBalances => Self::PoolBalances,
            Rule::GupFastReturnsOwnPages => Self::GupFastReturnsOwnPages,
        }
    }
}

impl Invariant for Holds {
    const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;
    const ASSERTIONS: Self = Self::ModelAssertionsHold;
    const DEADLOCK: Self = Self::LocksInOneOrder;

    fn name(self) -> &'static str {
        self.into()
    }

    fn broken(self) -> &'static str {
        match self {
            Self::LockOfALivePageTable => "the lock of a page table is no lock any more",
            Self::EntryInAnInstalledTable => "an entry is written to another's page table",
            Self::ShareCountMatchesUsers => "a page table has fewer or more users than it counts",
            Self::OnlyWholeVmasShare => "half a VMA shares a page table",
            Self::NoMappingOfARemovedFolio => "a removed folio is mapped",
            Self::NoFolioBeyondTheEnd => "a folio stays beyond the end of the file",
            Self::PoolBalances => "a folio is lost",
            Self::GupFastReturnsOwnPages => "GUP-fast returns another's page",
            Self::LocksInOneOrder => "tasks wait for each other's locks",
            Self::ModelAssertionsHold => "an assertion of the model fails",
        }
    }
}
