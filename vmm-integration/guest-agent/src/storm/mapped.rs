// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file of hugetlbfs, mapped.

use std::fs::File;
use std::num::NonZero;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use guest_agent::hugetlb::{Arrangement, HUGE_PAGE_BYTES, PRIVATE_PAGES, TABLE_PAGES};
use nix::errno::Errno;
use nix::libc::off_t;
use nix::sys::mman::{
    MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

pub(super) const PAGE_BYTES: usize = 2 << 20;
const TABLE_BYTES: usize = PAGE_BYTES * TABLE_PAGES as usize;
const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// A mapping that unmaps itself. Parts of it may be gone.
pub(super) struct Mapped {
    /// Where the first page of the file lies.
    start: NonNull<u8>,
    bytes: usize,
    /// Where the addresses around it lie, and their length.
    around: (NonNull<u8>, NonZero<usize>),
}

impl Mapped {
    /// Maps the whole file without reserving its pages.
    pub(super) fn whole(file: &File, arrangement: Arrangement) -> Result<Self> {
        let behind = match arrangement {
            Arrangement::Shared => 0,
            Arrangement::Apart => PAGE_BYTES,
        };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        Self::map(file, 0, TABLE_BYTES, behind, flags)
    }

    /// Maps the last pages of the file for this process only, unless `shared`, and reserves them.
    pub(super) fn last_pages(file: &File, shared: bool) -> Result<Self> {
        let bytes = PAGE_BYTES * PRIVATE_PAGES as usize;
        let flags = if shared { MapFlags::MAP_SHARED } else { MapFlags::MAP_PRIVATE };
        Self::map(file, TABLE_BYTES - bytes, bytes, 0, flags)
    }

    fn map(file: &File, from: usize, bytes: usize, behind: usize, flags: MapFlags) -> Result<Self> {
        let space = NonZero::new(bytes.next_multiple_of(TABLE_BYTES) + 2 * TABLE_BYTES)
            .context("no addresses asked for")?;
        let keep = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let around = unsafe { mmap_anonymous(None, space, ProtFlags::PROT_NONE, keep) }
            .context("finding addresses")?
            .cast::<u8>();
        let skip = around.as_ptr().align_offset(TABLE_BYTES) + behind;
        ensure!(skip + bytes <= space.get(), "the addresses do not suffice");
        // SAFETY: the range was just found to be within the addresses above.
        let start = unsafe { around.add(skip) };
        let length = NonZero::new(bytes).context("nothing to map")?;
        // SAFETY: it replaces a part of the mapping above, of which nobody else knows.
        let mapped = unsafe {
            let at = start.addr();
            let flags = flags | MapFlags::MAP_FIXED;
            mmap(Some(at), length, READ_WRITE, flags, file, off_t::try_from(from)?)
        };
        let mapping = Self { start, bytes, around: (around, space) };
        mapped.context("mapping the file: expected free huge pages")?;
        Ok(mapping)
    }

    /// A word of a page, which is mapped.
    pub(super) fn word(&self, page: usize, word: usize) -> *mut u64 {
        let at = page * PAGE_BYTES + word * size_of::<u64>();
        assert!(at < self.bytes, "page {page} is not mapped");
        // SAFETY: the range was just found to be in the mapping.
        unsafe { self.start.add(at).as_ptr().cast() }
    }

    /// Reads a word of a page, which is mapped.
    pub(super) fn read(&self, page: usize, word: usize) -> u64 {
        // SAFETY: the word lies in a mapping of this process. Other processes write to it, each a word
        // of its own, or all the same value.
        unsafe { self.word(page, word).read_volatile() }
    }

    /// Writes it.
    pub(super) fn write(&self, page: usize, word: usize, value: u64) {
        // SAFETY: as above; a page that was made read-only is not written to.
        unsafe { self.word(page, word).write_volatile(value) }
    }

    fn page(&self, page: usize) -> NonNull<std::ffi::c_void> {
        assert!((page + 1) * PAGE_BYTES <= self.bytes, "page {page} is not mapped");
        // SAFETY: the range was just found to be in the mapping.
        unsafe { self.start.add(page * PAGE_BYTES) }.cast()
    }

    /// Makes a page read-only, which splits the mapping.
    pub(super) fn protect(&self, page: usize) -> Result<()> {
        // SAFETY: nothing of this program has a reference to the page.
        unsafe { mprotect(self.page(page), PAGE_BYTES, ProtFlags::PROT_READ) }
            .context("making a page read-only")
    }

    /// Unmaps a page, which splits the mapping. The page must not be touched any more.
    pub(super) fn unmap(&self, page: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { munmap(self.page(page), PAGE_BYTES) }.context("unmapping a page")
    }

    /// Drops a page from the page table; the file keeps it.
    pub(super) fn drop_page(&self, page: usize) -> Result<()> {
        // SAFETY: the page is of a file, which keeps the contents.
        unsafe { madvise(self.page(page), PAGE_BYTES, MmapAdvise::MADV_DONTNEED) }
            .context("dropping a page")
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let (start, length) = self.around;
        // SAFETY: the addresses are of this mapping only.
        if let Err(error) = unsafe { munmap(start.cast(), length.get()) } {
            eprintln!("guest-agent: unmapping a file of hugetlbfs: {error}");
        }
    }
}

/// Punches a hole of whole pages into the file.
pub(super) fn punch(file: &File, first: usize, pages: usize) -> Result<()> {
    let bytes = |pages: usize| off_t::try_from(pages * PAGE_BYTES);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: it changes a file, of which no process has a reference to a page.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, bytes(first)?, bytes(pages)?) };
    Errno::result(done).map(drop).context("punching a hole")
}

/// Makes the file as long as a page table maps.
pub(super) fn size(file: &File) -> Result<()> {
    file.set_len(HUGE_PAGE_BYTES * u64::from(TABLE_PAGES)).context("sizing the file")
}
