// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes to guest memory that a chain names, without populating it.
//!
//! Writing to a hole of a memory file allocates the page, and charges it to the cgroup of the writer:
//! a guest that has the device answer into pages it never touched would fill the daemon's limit. A
//! driver that waits for an answer has cleared its buffer, so that the buffer is there.

use std::io;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::GuestMemory;
use super::regions::base_page_size;

/// Writes `bytes` to guest memory from address `at` on, and marks them in the log of a migration.
/// Says whether it did: all of it has to be memory that is there already, else nothing is written.
pub(crate) fn poke(memory: &GuestMemory, at: GuestAddress, bytes: &[u8]) -> bool {
    let Some(last) = (bytes.len() as u64).checked_sub(1).and_then(|last| at.checked_add(last))
    else {
        return false;
    };
    let page_size = base_page_size();
    let mut page = at.0 - at.0 % page_size;
    while page <= last.0 {
        // The first byte of the page that is asked for, since a region may begin within one.
        if !is_populated(memory, GuestAddress(page.max(at.0)), page_size) {
            return false;
        }
        match page.checked_add(page_size) {
            Some(next) => page = next,
            None => break,
        }
    }
    memory.write_slice(bytes, at).is_ok()
}

/// Whether the page at `at` is there, as far as the kernel tells. Of a file that this process could
/// not open it always says so.
fn is_populated(memory: &GuestMemory, at: GuestAddress, page_size: u64) -> bool {
    let Ok(host) = memory.get_host_address(at) else { return false };
    let Ok(page_size) = usize::try_from(page_size) else { return false };
    let start = host.map_addr(|address| address - address % page_size);
    let mut resident = 0_u8;
    loop {
        // SAFETY: mincore looks at no memory of this process but the one byte that it writes, which
        // is as long as a page needs. An address that is not mapped is an error.
        if unsafe { libc::mincore(start.cast(), page_size, &raw mut resident) } == 0 {
            return resident & 1 == 1;
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN) {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::GuestRegion;
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{FileOffset, MmapRegion};

    const PAGE: u64 = 4096;

    #[test]
    fn hole_is_not_written_and_stays_a_hole() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(4 * PAGE).unwrap();
        let backing = FileOffset::new(file.try_clone().unwrap(), 0);
        let mapped = MmapRegion::from_file(backing, 4 * 4096).unwrap();
        let region = GuestRegion::new(mapped, GuestAddress(PAGE)).unwrap();
        let memory = GuestMemory::from_regions(vec![region]).unwrap();
        memory.write_slice(&[1], GuestAddress(2 * PAGE)).unwrap();
        let blocks = || file.metadata().unwrap().blocks();
        assert_eq!(blocks(), 8);
        for (at, len, written) in [
            (2 * PAGE, 16, true),
            (3 * PAGE - 16, 16, true),
            // The second page is a hole, or the only one, or no memory.
            (3 * PAGE - 15, 16, false),
            (PAGE, 16, false),
            (PAGE - 1, 2, false),
            (5 * PAGE - 1, 2, false),
            (1 << 40, 1, false),
            (u64::MAX, 1, false),
            (u64::MAX, 2, false),
            (2 * PAGE, 0, false),
        ] {
            assert_eq!(poke(&memory, GuestAddress(at), &[7; 16][..len]), written, "{at:#x}");
        }
        assert_eq!(blocks(), 8);
        let byte = |at| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([byte(2 * PAGE), byte(2 * PAGE + 16), byte(3 * PAGE - 1)], [7, 0, 7]);
    }
}
