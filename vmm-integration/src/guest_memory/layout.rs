// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which memory files a guest has, and where they show in its address space.

use anyhow::{Context, Result, ensure};
use guest_driver::ram::{Gpa, GpaRange};

/// The page size of an ordinary memory file, in bytes.
const BASE_PAGE_BYTES: u64 = 4096;
const FOUR_GIB: u64 = 4 << 30;

/// What a memory file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Pages of 4 KiB, or transparent huge ones where they are asked for.
    Memfd,
    /// Transparent huge pages of a tmpfs of its own (`huge=always`), whatever the host says to
    /// memfds; mounting it takes root.
    Transparent,
    /// Pages of 4 KiB of a tmpfs of its own that holds `limit_bytes` at most; mounting it takes root.
    LimitedTmpfs {
        /// The size limit in bytes.
        limit_bytes: u64,
    },
    /// An unnamed file in the directory for temporary files, whatever file system that is on.
    File,
    /// Pages of `page_bytes` out of the pool of hugetlbfs.
    Hugetlb {
        /// The page size in bytes, a power of two that the host has a pool for.
        page_bytes: u64,
    },
}

impl Backing {
    /// Size of the smallest piece that can be discarded, in bytes.
    pub const fn page_bytes(self) -> u64 {
        match self {
            Self::Memfd | Self::Transparent | Self::LimitedTmpfs { .. } | Self::File => {
                BASE_PAGE_BYTES
            }
            Self::Hugetlb { page_bytes } => page_bytes,
        }
    }
}

/// A piece of a memory file that is guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub range: GpaRange,
    /// The index of its file.
    pub file: usize,
    /// Where it starts in that file, in bytes.
    pub file_offset: u64,
}

/// The files and regions of a guest. Several regions may lie in one file.
#[derive(Clone, Debug, Default)]
pub struct RamLayout {
    files: Vec<Backing>,
    regions: Vec<Region>,
}

impl RamLayout {
    /// One region of `bytes` from address 0 in a file of its own.
    pub fn flat(bytes: u64, backing: Backing) -> Self {
        let mut layout = Self::default();
        let file = layout.file(backing);
        layout.region(Gpa(0), bytes, file, 0)
    }

    /// `bytes` of RAM in one file as on x86: up to `below` of them from address 0, the others
    /// from 4 GiB.
    pub fn x86(bytes: u64, below: u64, backing: Backing) -> Self {
        let below = bytes.min(below);
        let mut layout = Self::flat(below, backing);
        if bytes > below {
            layout = layout.region(Gpa(FOUR_GIB), bytes - below, 0, below);
        }
        layout
    }

    /// Everything that a range can run into: two regions that meet although they are of two files,
    /// a hole, and behind it a second region of the first file. 16, 8, 8 and again 16 units of
    /// 1 MiB, or of 8 pages where pages are large.
    pub fn with_seam_and_hole(backing: Backing) -> Self {
        let unit = (8 * backing.page_bytes()).max(1 << 20);
        let mut layout = Self::default();
        let (first, second) = (layout.file(backing), layout.file(backing));
        layout
            .region(Gpa(0), 16 * unit, first, 0)
            .region(Gpa(16 * unit), 8 * unit, second, 0)
            .region(Gpa(32 * unit), 16 * unit, first, 16 * unit)
    }

    /// Adds a file and returns its index. It becomes as long as its regions need.
    pub fn file(&mut self, backing: Backing) -> usize {
        self.files.push(backing);
        self.files.len() - 1
    }

    /// Adds a region of `bytes` at `start` that lies in `file` from `file_offset` on.
    /// [`super::Ram::new`] checks it.
    #[must_use]
    pub fn region(mut self, start: Gpa, bytes: u64, file: usize, file_offset: u64) -> Self {
        // A region past 2^64 becomes an empty one, which the check refuses.
        let range = GpaRange::new(start, bytes).unwrap_or_default();
        self.regions.push(Region { range, file, file_offset });
        self
    }

    pub(super) fn files(&self) -> &[Backing] {
        &self.files
    }

    /// How long a file has to be, in bytes.
    pub(super) fn file_bytes(&self, file: usize) -> u64 {
        let of_file = self.regions.iter().filter(|region| region.file == file);
        of_file.map(|region| region.file_offset + region.range.len()).max().unwrap_or(0)
    }

    /// The regions by address, each found possible. That they do not overlap is left to the
    /// memory map they go into.
    pub(super) fn checked_regions(&self) -> Result<Vec<Region>> {
        let mut regions = self.regions.clone();
        regions.sort_by_key(|region| region.range.start());
        for Region { range, file, file_offset } in &regions {
            let backing = self.files.get(*file).with_context(|| format!("no file {file}"))?;
            let page = backing.page_bytes();
            ensure!(page.is_power_of_two(), "a page of {page} bytes is not a power of two");
            ensure!(!range.is_empty(), "a region at {} is empty or passes 2^64", range.start());
            ensure!(
                range.end().is_some() && file_offset.checked_add(range.len()).is_some(),
                "region {range} at offset {file_offset:#x} of its file passes 2^64"
            );
            ensure!(
                [range.start().0, range.len(), *file_offset].iter().all(|n| n.is_multiple_of(page)),
                "region {range} at offset {file_offset:#x} of its file is not made of whole pages \
                 of {page} bytes"
            );
        }
        Ok(regions)
    }
}
