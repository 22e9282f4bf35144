// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeps guest memory out of core dumps.

use std::io;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;

/// Leaves every region out of a core dump of this process: it may hold the guest's secrets, and
/// writing it out would populate its holes.
///
/// # Errors
/// What `madvise` says; later regions are left out all the same.
pub(crate) fn leave_out_of_dumps(memory: &GuestMemory) -> io::Result<()> {
    let mut result = Ok(());
    for region in memory.iter() {
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
        // SAFETY: a mapping of that length that lives as long as `memory`; the advice changes
        // nothing of what it holds.
        if unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTDUMP) } != 0 {
            result = Err(io::Error::last_os_error());
        }
    }
    result
}
