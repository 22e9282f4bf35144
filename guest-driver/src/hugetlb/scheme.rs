// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to keep a shared page table from being unshared under a fault, and mistakes.

/// What keeps a page table in place between `huge_pte_alloc` and `huge_pte_lock`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Scheme {
    /// Nothing.
    Nothing,
    /// Nothing; under the table's lock a fault looks again whether the table is still installed.
    CheckAgain,
    /// As [`Scheme::CheckAgain`], and a count that only the eviction of the inode waits for.
    StopEviction,
    /// Faults share the lock of the mapping's tree (`i_mmap_rwsem`), as Linux 5.7 to 6.0.
    IMmapRead,
    /// Faults share a lock of the inode that only unsharing takes alone, as Oracle's kernel.
    InodeRwsem,
    /// Faults share a lock of the VMA, as Linux since 6.1, in the order of 6.19.
    VmaLock,
    /// A page table is freed after a grace period; a fault finds, locks and checks it within one section.
    RcuCheckAgain,
}

impl Scheme {
    /// All of them.
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Those that are meant to work.
    pub const SOUND: &'static [Self] =
        &[Self::IMmapRead, Self::InodeRwsem, Self::VmaLock, Self::RcuCheckAgain];

    /// Whether a fault looks again under the table's lock.
    pub(super) fn checks_again(self) -> bool {
        matches!(self, Self::CheckAgain | Self::StopEviction | Self::RcuCheckAgain)
    }

    /// Whether the lock over a fault comes before the fault mutex, so that a punch must take it first.
    pub(super) fn locks_before_mutex(self) -> bool {
        matches!(self, Self::IMmapRead | Self::InodeRwsem)
    }
}

/// A mistake, for an explorer to find.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Flaw {
    /// The reference count of a page table says how many share it, as in Linux until 6.12. A speculative
    /// reference looks like another process.
    CountsReferences,
    /// Unsharing does not wait for GUP-fast walkers, as in Linux until 6.15.
    IgnoresWalkers,
    /// A copy-on-write fault waits for the fault mutex with a folio locked, as in Linux until 2025.
    KeepsFolioLock,
    /// A punch leaves out the VMAs whose lock it does not get at once.
    SkipsBusyVma,
    /// A VMA is split without unsharing its page tables, as in Linux until 6.15.
    SplitKeepsSharing,
}

impl Flaw {
    /// All of them.
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;
}
