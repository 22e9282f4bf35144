// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parameters of `reclaim-path`.

use crate::parameters::parameters;
use crate::parameters::takes::{PowersOfTwo, Several, Whole};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// The memory file of the guest.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
pub(in crate::bench) enum Backing {
    /// A memfd with pages of 4 KiB.
    #[strum(serialize = "4k")]
    Base,
    /// A memfd of hugetlbfs with pages of 2 MiB.
    #[strum(serialize = "hugetlb")]
    Hugetlb,
}

impl Backing {
    pub(super) fn page_bytes(self) -> u64 {
        match self {
            Self::Base => 4 * KIB,
            Self::Hugetlb => 2 * MIB,
        }
    }
}

/// Whether processes that map the file can share page tables of 1 GiB.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::bench) enum Tables {
    /// Each maps it at a multiple of 1 GiB.
    Shared,
    /// Each maps it at another distance from a multiple of 1 GiB.
    Private,
}

/// Processes that have mapped the pages which are discarded. The daemon maps the file as well, and
/// touches only the rings.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::bench) enum Processes {
    /// The VMM.
    One,
    /// The VMM and a backend, such as one for a network.
    Two,
    /// Eight.
    Many,
}

impl Processes {
    pub(super) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Many => 8,
        }
    }
}

/// The pages that a process touches while the daemon discards.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::bench) enum Touch {
    /// None: the rate of discarding alone.
    None,
    /// Holes of the file outside the discarded range, as a guest that uses more memory.
    Fresh,
    /// Pages of the file outside the discarded range that the process has not mapped.
    Mapped,
    /// The pages that are being discarded, as a process that copies all guest memory.
    Within,
}

fn touches() -> Vec<Touch> {
    vec![Touch::None, Touch::Fresh, Touch::Mapped, Touch::Within]
}

parameters! {
    /// The parameters.
    pub(in crate::bench) struct Settings {
        backing: Vec<Backing>, Several::any(), vec![Backing::Base, Backing::Hugetlb],
            vec![Backing::Base, Backing::Hugetlb],
            "memory file of the guest. hugetlb needs root, to raise the host's pool meanwhile";
        tables: Vec<Tables>, Several::any(), vec![Tables::Shared, Tables::Private],
            vec![Tables::Shared, Tables::Private],
            "whether processes map a hugetlb file so that they share page tables";
        processes: Vec<Processes>, Several::any(), vec![Processes::One, Processes::Many],
            vec![Processes::One, Processes::Two, Processes::Many],
            "processes that have mapped the discarded pages: 1, 2 or 8";
        touch: Vec<Touch>, Several::any(), vec![Touch::Fresh, Touch::Within], touches(),
            "pages that the first of them touches meanwhile: none, fresh (holes elsewhere in the file), \
             mapped (pages elsewhere in the file that only its page table lacks), within (the pages that \
             are being discarded)";
        calls_4k: Vec<u64>, PowersOfTwo(4 * KIB, 256 * MIB), vec![64 * KIB, 4 * MIB, 32 * MIB],
            vec![4 * KIB, 64 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 32 * MIB, 256 * MIB],
            "limits of a discarding call (--max-discard-call) with pages of 4 KiB; the largest is the \
             range that is discarded";
        calls_hugetlb: Vec<u64>, PowersOfTwo(2 * MIB, GIB), vec![2 * MIB, 256 * MIB],
            vec![2 * MIB, 16 * MIB, 64 * MIB, 128 * MIB, 256 * MIB, 512 * MIB, GIB],
            "the same with huge pages";
        rounds: usize, Whole(1, 1000), 2, 9, "discards with each limit, which take turns";
    }
}
