// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Parts of memory files that stay whatever the guest reports: those that are pinned, and those that
//! hold a ring.
//!
//! Both are named by guest address, and the guest may see the same part of a file at a second one.
//! So they are resolved to files, through the regions of the moment, and a region asks for its file.

use super::ranges::{GuestRange, Piece, merge, split};
use super::regions::RegionTable;

/// Guest memory that the device uses itself, asked for before each discarding call.
pub(crate) trait InUse: Send + Sync {
    /// Grows whenever the answer of [`InUse::ranges`] changes.
    fn version(&self) -> u64;

    /// Guest physical addresses, in any order and not checked.
    fn ranges(&self) -> Vec<GuestRange>;
}

/// Offsets in memory files, for each file of a [`RegionTable`], sorted and merged.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pinned: Resolved<Vec<GuestRange>>,
    in_use: Resolved<u64>,
}

/// Ranges of each file, and what they were resolved from.
#[derive(Debug, Default)]
struct Resolved<F> {
    from: Option<F>,
    /// Offsets by the index of the file, see [`super::regions::Region::file_index`].
    files: Vec<Vec<GuestRange>>,
}

impl<F> Resolved<F> {
    fn resolve(&mut self, from: F, ranges: &[GuestRange], table: &RegionTable) {
        self.from = Some(from);
        self.files.iter_mut().for_each(Vec::clear);
        self.files.resize_with(table.files(), Vec::new);
        for range in ranges {
            for piece in split(*range, table.regions()) {
                let Piece::Inside { region, range } = piece else { continue };
                let region = &table.regions()[region];
                let offset = region.offset_of(range.start());
                let part = offset.and_then(|offset| GuestRange::new(offset, range.len()).ok());
                self.files[region.file_index()].extend(part);
            }
        }
        for file in &mut self.files {
            let _overlap = merge(file);
        }
    }

    fn of(&self, file: usize) -> &[GuestRange] {
        self.files.get(file).map_or(&[], Vec::as_slice)
    }
}

impl Kept {
    /// Brings up to date what is pinned and what is in use; allocates only where that has changed.
    pub(super) fn refresh(
        &mut self,
        table: &RegionTable,
        pinned: &[GuestRange],
        in_use: Option<&dyn InUse>,
    ) {
        if self.pinned.from.as_deref() != Some(pinned) {
            self.pinned.resolve(pinned.to_vec(), pinned, table);
        }
        if let Some(in_use) = in_use {
            // The version first: a change in between is resolved again.
            let version = in_use.version();
            if self.in_use.from != Some(version) {
                self.in_use.resolve(version, &in_use.ranges(), table);
            }
        }
    }

    /// Offsets in the file of this index that are pinned.
    pub(super) fn pinned(&self, file: usize) -> &[GuestRange] {
        self.pinned.of(file)
    }

    /// Offsets in the file of this index that the device uses.
    pub(super) fn in_use(&self, file: usize) -> &[GuestRange] {
        self.in_use.of(file)
    }
}
