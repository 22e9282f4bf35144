// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads guest memory that is only looked at, without populating it.
//!
//! Reading a hole of a shared memory file through a mapping allocates the page, and charges it to
//! the cgroup of the reader: a guest that points the device at pages it never touched would fill
//! the daemon's limit. `pread` of the file gives zeros and allocates nothing, on tmpfs and on
//! hugetlbfs. The rings themselves are accessed through the mapping: the driver has written them,
//! and the device writes its part of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;

/// Copies guest memory from address `at` on into `into`, as far as it is memory without a gap;
/// returns how many bytes that are. Each region on the way costs one system call.
///
/// The copy is taken once: the guest may change the original meanwhile.
///
/// # Errors
/// If a memory file cannot be read, or is shorter than its region.
pub(crate) fn peek(memory: &GuestMemory, at: GuestAddress, into: &mut [u8]) -> io::Result<usize> {
    let mut copied = 0;
    while copied < into.len() {
        let Some((region, offset)) = at
            .checked_add(copied as u64)
            .and_then(|at| memory.to_region_addr(at))
            .map(|(region, offset)| (region, offset.raw_value()))
        else {
            break;
        };
        let left = usize::try_from(region.len() - offset).unwrap_or(usize::MAX);
        let len = left.min(into.len() - copied);
        let backing = region.file_offset().ok_or(io::ErrorKind::Unsupported)?;
        let start = backing.start().checked_add(offset).ok_or(io::ErrorKind::InvalidInput)?;
        read_all(backing.file(), &mut into[copied..copied + len], start)?;
        copied += len;
    }
    Ok(copied)
}

fn read_all(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    // Retries after EINTR; the end of the file is an error.
    file.read_exact_at(into, offset)
}

#[cfg(test)]
mod tests {
    use super::super::GuestRegion;
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, FileOffset, MmapRegion};

    const PAGE: usize = 4096;

    fn file(pages: u64) -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(pages * PAGE as u64).unwrap();
        file
    }

    fn region(gpa: u64, file: &File, offset: u64, len: usize) -> GuestRegion {
        let backing = FileOffset::new(file.try_clone().unwrap(), offset);
        GuestRegion::new(MmapRegion::from_file(backing, len).unwrap(), GuestAddress(gpa)).unwrap()
    }

    #[test]
    fn a_copy_crosses_regions_and_ends_where_memory_does() {
        let (low, high) = (file(2), file(2));
        // The second begins at an offset of its file.
        let regions = vec![region(0, &low, 0, 2 * PAGE), region(0x2000, &high, 0x1000, PAGE)];
        let memory = GuestMemory::from_regions(regions).unwrap();
        memory.write_slice(&[7; 16], GuestAddress(0x1ff8)).unwrap();
        let mut bytes = [1; 16];
        assert_eq!(peek(&memory, GuestAddress(0x1ff8), &mut bytes).unwrap(), 16);
        assert_eq!(bytes, [7; 16]);
        assert_eq!(peek(&memory, GuestAddress(0x2ffc), &mut bytes).unwrap(), 4);
        assert_eq!(bytes[..5], [0, 0, 0, 0, 7]);
        for outside in [0x3000, u64::MAX - 3] {
            assert_eq!(peek(&memory, GuestAddress(outside), &mut bytes).unwrap(), 0);
        }
    }

    #[test]
    fn a_hole_stays_a_hole() {
        let file = file(64);
        let memory = GuestMemory::from_regions(vec![region(0, &file, 0, 64 * PAGE)]).unwrap();
        let mut bytes = vec![1; 64 * PAGE];
        assert_eq!(peek(&memory, GuestAddress(0), &mut bytes).unwrap(), bytes.len());
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn a_file_that_ends_before_its_region_is_an_error() {
        let file = file(2);
        let memory = GuestMemory::from_regions(vec![region(0, &file, 0, 2 * PAGE)]).unwrap();
        file.set_len(PAGE as u64).unwrap();
        assert!(peek(&memory, GuestAddress(0x1000), &mut [0; 4]).is_err());
    }
}
