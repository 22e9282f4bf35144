// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Holds the lock of a memory file's inode, as a VMM does while it allocates gigabytes of it, and
//! for exactly as long as a test wants.
//!
//! A `write` to the file takes the lock and then reads its source, a page that only userfaultfd
//! fills: the write is stuck with the lock until the userfaultfd is closed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xAA, 0x00, struct uffdio_register)`
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const PAGE: usize = 4096;

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct InodeLock {
    faults: Option<File>,
    writer: Option<JoinHandle<()>>,
}

impl InodeLock {
    /// Takes the lock of the inode of `file`. The byte at `offset` becomes 0 when it is released.
    ///
    /// # Errors
    /// When there is no userfaultfd for faults of the kernel, which takes root.
    pub fn hold(file: impl AsFd, offset: u64) -> Result<Self> {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        // SAFETY: userfaultfd takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        ensure!(fd >= 0, "no userfaultfd: {}", io::Error::last_os_error());
        // SAFETY: a new descriptor that nothing else owns.
        let faults = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        control(&faults, UFFDIO_API, &mut [UFFD_API, 0, 0])?;
        // SAFETY: a new anonymous mapping.
        let page = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ, flags, -1, 0)
        };
        ensure!(page != libc::MAP_FAILED, "no memory: {}", io::Error::last_os_error());
        let page = page.expose_provenance();
        control(&faults, UFFDIO_REGISTER, &mut [page as u64, PAGE as u64, MODE_MISSING, 0])?;
        let writer = thread::spawn(move || {
            let page: *const u8 = ptr::with_exposed_provenance(page);
            // SAFETY: one byte of the mapping, which this thread unmaps below.
            let byte = unsafe { std::slice::from_raw_parts(page, 1) };
            let _ = file.write_at(byte, offset);
            // SAFETY: nothing else knows the mapping.
            unsafe { libc::munmap(page.cast_mut().cast(), PAGE) };
        });
        let held = Self { faults: Some(faults.into()), writer: Some(writer) };
        let mut event = [0; 32];
        held.faults.as_ref().context("just opened")?.read_exact(&mut event)?;
        ensure!(event[0] == EVENT_PAGEFAULT, "userfaultfd event {}", event[0]);
        Ok(held)
    }
}

impl Drop for InodeLock {
    fn drop(&mut self) {
        // The fault is served as any other then, with a page of zeros.
        drop(self.faults.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn control<const N: usize>(
    faults: &OwnedFd,
    request: libc::c_ulong,
    argument: &mut [u64; N],
) -> Result<()> {
    // SAFETY: both requests take a structure of as many words as are given.
    let done = unsafe { libc::ioctl(faults.as_raw_fd(), request, argument.as_mut_ptr()) };
    ensure!(done == 0, "userfaultfd: {}", io::Error::last_os_error());
    Ok(())
}
