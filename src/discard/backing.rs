// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What backs the guest's memory, as operators see it.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::regions::Kept;
use super::{Region, RegionTable};

/// A region of the guest's memory.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Backing {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Size in bytes of the smallest part that can be discarded.
    pub page_bytes: u64,
    /// Whether it is memory of hugetlbfs.
    pub hugetlb: bool,
    /// Why none of it is discarded, by the name of the reason in the counters; `null` if it
    /// is.
    #[serde(default)]
    pub kept_for: Option<String>,
}

/// A region of a session, for those that show it.
#[derive(Debug)]
pub(crate) struct Shown {
    at_first: Backing,
    kept: Arc<Kept>,
}

impl From<&Region> for Shown {
    fn from(region: &Region) -> Self {
        let range = region.as_ref();
        let at_first = Backing {
            address: range.start(),
            bytes: range.len(),
            page_bytes: region.page_size(),
            hugetlb: region.is_hugetlb(),
            kept_for: None,
        };
        Self { at_first, kept: region.kept_later() }
    }
}

impl Shown {
    /// The region, with what is known of it now.
    pub(crate) fn now(&self) -> Backing {
        let kept_for = self.kept.reason().map(|reason| reason.name().to_owned());
        Backing { kept_for, ..self.at_first.clone() }
    }
}

impl RegionTable {
    /// The regions, by address.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        self.regions().iter().map(Shown::from).collect()
    }

    /// Bytes of the files behind the regions that are there, in memory or swapped out: each file
    /// counted once, and with all that it holds, be it part of a region or not.
    ///
    /// # Errors
    /// What `fstat` says.
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        let mut seen = HashSet::new();
        let mut bytes: u64 = 0;
        for region in self.regions() {
            let file = region.file().metadata()?;
            if seen.insert((file.dev(), file.ino())) {
                // In units of 512 bytes, whatever the file system's are (stat(2)).
                bytes = bytes.saturating_add(file.blocks().saturating_mul(512));
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GuestMemory, GuestRegion, MemoryOptions};
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::{FileOffset, GuestAddress, MmapRegion};

    #[test]
    fn a_file_is_counted_once() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x10000).unwrap();
        let region = |gpa, offset| {
            let backing = FileOffset::new(file.try_clone().unwrap(), offset);
            let mapped = MmapRegion::from_file(backing, 0x8000).unwrap();
            GuestRegion::new(mapped, GuestAddress(gpa)).unwrap()
        };
        let regions = vec![region(0, 0), region(0x10_0000, 0x8000)];
        let memory = GuestMemory::from_regions(regions).unwrap();
        let table = RegionTable::new(&memory, MemoryOptions::default()).unwrap();
        assert_eq!(table.resident_bytes().unwrap(), 0);
        file.write_at(&[1], 0x1000).unwrap();
        file.write_at(&[1], 0x9000).unwrap();
        assert_eq!(table.resident_bytes().unwrap(), 0x2000);
        let shown: Vec<_> = table.shown().iter().map(Shown::now).collect();
        let [low, high] = &shown[..] else { panic!("two regions") };
        assert_eq!((low.address, high.address), (0, 0x10_0000));
        // Others may fill that tmpfs.
        let kept_for = Some("limited_tmpfs".to_owned());
        let expected =
            Backing { address: 0, bytes: 0x8000, page_bytes: 4096, hugetlb: false, kept_for };
        assert_eq!(low, &expected);
    }
}
