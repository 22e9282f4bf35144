// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator lets the daemon do to memory.

/// What may be discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryOptions {
    /// Whether pages of hugetlbfs are discarded.
    ///
    /// Off by default: a page that went back to the pool may be taken by another program, and the
    /// guest that touches it again is killed.
    pub hugetlb: bool,
    /// Whether guest memory may lie in a file of a local file system on disk.
    ///
    /// Off by default: a discard there waits for a disk, and the guest's memory with it.
    pub files: bool,
    /// Whether pages of a tmpfs of limited size are discarded.
    ///
    /// Off by default, for the reason of `hugetlb`: others may fill the space.
    pub limited_tmpfs: bool,
    /// The most bytes that one call discards, a power of two; none for the default of the backing.
    /// A single page that is larger goes in one call.
    pub most_bytes_a_call: Option<u64>,
}
