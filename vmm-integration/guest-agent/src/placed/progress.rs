// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How far a task is, in memory that it shares with init.

use std::fs::{File, OpenOptions};
use std::num::NonZero;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64};

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// What a task counts.
#[repr(C)]
#[derive(Default)]
pub(super) struct Counters {
    /// Pages that it faulted in.
    pub(super) pages: AtomicU64,
    /// Rounds that it finished.
    pub(super) rounds: AtomicU64,
    /// Whether it rests between two.
    pub(super) rests: AtomicBool,
}

const LENGTH: NonZero<usize> = NonZero::new(size_of::<Counters>()).unwrap();

/// The counters in a file of memory.
pub(super) struct Progress(NonNull<Counters>);

// SAFETY: the mapping belongs to no thread, and all that is in it is atomic.
unsafe impl Send for Progress {}
// SAFETY: as above.
unsafe impl Sync for Progress {}

impl Progress {
    /// Maps new counters at `path`, all zero. The page is there from then on: a task that counts
    /// needs no memory for it.
    pub(super) fn create(path: &str) -> Result<Self> {
        let mut file = OpenOptions::new();
        let file = file.read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("creating {path}"))?;
        file.set_len(u64::try_from(LENGTH.get())?).with_context(|| format!("sizing {path}"))?;
        let progress = Self::map(&file)?;
        progress.rests.store(false, std::sync::atomic::Ordering::Relaxed);
        Ok(progress)
    }

    /// Maps the counters of [`Progress::create`].
    pub(super) fn open(path: &str) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Self::map(&file.with_context(|| format!("opening {path}"))?)
    }

    fn map(file: &File) -> Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { mmap(None, LENGTH, access, MapFlags::MAP_SHARED, file, 0) }
            .context("mapping the counters of a task")?;
        Ok(Self(start.cast()))
    }
}

impl Deref for Progress {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        // SAFETY: the mapping is page-aligned, as long as that, of a file that nobody shortens, and
        // lives as long as `self`; any bits that the other process writes are valid atomics: a bool is
        // written as one only.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // SAFETY: the range is the whole of a mapping with no other user in this process.
        if let Err(error) = unsafe { munmap(self.0.cast(), LENGTH.get()) } {
            eprintln!("guest-agent: munmap of counters: {error}");
        }
    }
}
