// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operations that take memory whose report is out.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::race) enum Operation {
    /// A memory block goes offline.
    Offline,
    /// A page of 1 GiB around the block, with `alloc_contig_range`.
    GiganticPage,
    /// A virtio-mem device is unplugged.
    VirtioMem,
}

impl Operation {
    pub(super) const ALL: [Self; 3] = [Self::Offline, Self::GiganticPage, Self::VirtioMem];
}
