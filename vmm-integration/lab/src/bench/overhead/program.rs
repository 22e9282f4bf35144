// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The programs that fault memory in.

use guest_agent::faulting::Work;

/// Of will-it-scale: each iteration maps, writes to and unmaps so much.
pub(super) const MAPPING_BYTES: u64 = 128 << 20;

/// A program, after will-it-scale or with the work left to the kernel.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
pub(in super::super) enum Program {
    /// Anonymous memory, in huge pages.
    #[strum(serialize = "page_fault1")]
    PageFault1,
    /// A private mapping of a file, in single pages.
    #[strum(serialize = "page_fault2")]
    PageFault2,
    /// Anonymous memory that the kernel populates.
    #[strum(serialize = "populate")]
    Populate,
    /// A file in tmpfs.
    #[strum(serialize = "write")]
    Write,
}

impl Program {
    /// All programs.
    pub(super) const ALL: [Self; 4] =
        [Self::PageFault1, Self::PageFault2, Self::Populate, Self::Write];

    /// Those that will-it-scale has.
    pub(super) fn is_of_will_it_scale(self) -> bool {
        matches!(self, Self::PageFault1 | Self::PageFault2)
    }

    pub(super) fn work(self) -> Work {
        match self {
            Self::PageFault1 => Work::Anonymous,
            Self::PageFault2 => Work::File,
            Self::Populate => Work::Populate,
            Self::Write => Work::Write,
        }
    }

    /// What each task does, in a sentence.
    pub(super) fn about(self) -> String {
        let mib = MAPPING_BYTES >> 20;
        match self {
            Self::PageFault1 => {
                format!(
                    "Each task writes to every page of {mib} MiB of anonymous memory in huge pages, and unmaps it."
                )
            }
            Self::PageFault2 => {
                format!(
                    "Each task writes to every page of {mib} MiB of a private mapping of a file, in single pages, and unmaps it."
                )
            }
            Self::Populate => {
                format!(
                    "Each task has the kernel populate {mib} MiB of anonymous memory, and unmaps it."
                )
            }
            Self::Write => {
                format!("Each task writes {mib} MiB to a file in tmpfs, and truncates it.")
            }
        }
    }
}
