// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the processes of a storm share: the end, and the holes that were punched.

use std::fs::OpenOptions;
use std::num::NonZero;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use guest_agent::hugetlb::TABLE_PAGES;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const PAGES: usize = TABLE_PAGES as usize;

/// The shared words. One process at a time punches a page.
#[repr(C)]
pub(super) struct Words {
    stop: AtomicU64,
    begun: [AtomicU64; PAGES],
    ended: [AtomicU64; PAGES],
}

const LENGTH: NonZero<usize> = NonZero::new(size_of::<Words>()).unwrap();

impl Words {
    pub(super) fn goes_on(&self) -> bool {
        self.stop.load(Ordering::SeqCst) == 0
    }

    pub(super) fn stop(&self) {
        self.stop.store(1, Ordering::SeqCst);
    }

    /// Counts a punch of a page before the system call.
    pub(super) fn begin_punch(&self, page: usize) {
        self.begun[page].fetch_add(1, Ordering::SeqCst);
    }

    /// Counts it behind the call.
    pub(super) fn end_punch(&self, page: usize) {
        self.ended[page].fetch_add(1, Ordering::SeqCst);
    }

    /// Punches of a page that have begun.
    pub(super) fn begun(&self, page: usize) -> u64 {
        self.begun[page].load(Ordering::SeqCst)
    }

    /// Punches of a page that have ended.
    pub(super) fn ended(&self, page: usize) -> u64 {
        self.ended[page].load(Ordering::SeqCst)
    }
}

/// The words in a file of memory.
pub(super) struct Control(NonNull<Words>);

impl Control {
    /// Maps the words in the file at `path`; a new file has zeros.
    pub(super) fn open(path: &str, new: bool) -> Result<Self> {
        let mut file = OpenOptions::new();
        let file = file.read(true).write(true).create(new).truncate(new).open(path);
        let file = file.with_context(|| format!("opening {path}"))?;
        if new {
            file.set_len(u64::try_from(LENGTH.get())?).with_context(|| format!("sizing {path}"))?;
        }
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { mmap(None, LENGTH, access, MapFlags::MAP_SHARED, &file, 0) }
            .context("mapping the words of a storm")?;
        Ok(Self(start.cast()))
    }
}

impl Deref for Control {
    type Target = Words;

    fn deref(&self) -> &Words {
        // SAFETY: the mapping is page-aligned, as long as that, of a file that nobody shortens, and
        // lives as long as `self`; any bits are valid atomics.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: the range is the whole of a mapping with no other user in this process.
        if let Err(error) = unsafe { munmap(self.0.cast(), LENGTH.get()) } {
            eprintln!("guest-agent: munmap of the words of a storm: {error}");
        }
    }
}
