// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory that tests allocate, fill, check and free.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZero;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use guest_agent::{Verified, pattern};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::lock::lock;

/// Kept free beyond an allocation: page tables for it, and what the agent itself needs.
const RESERVE_BYTES: u64 = 16 << 20;

/// All allocations of the agent, by id.
#[derive(Default)]
pub(crate) struct Allocations {
    by_id: Mutex<HashMap<u32, Arc<Mutex<Allocation>>>>,
    /// Bytes of allocations that are being filled: promised, but still counted as available.
    promised_bytes: Mutex<u64>,
}

/// One allocation and the generation that was last written to it.
struct Allocation {
    mapping: Mapping,
    generation: u16,
}

impl Allocations {
    /// Maps and fills `bytes`.
    pub(crate) fn alloc(&self, id: u32, bytes: u64, generation: u16) -> Result<()> {
        let promise = self.promise(bytes)?;
        let allocation = Arc::new(Mutex::new(Allocation {
            mapping: Mapping::new(bytes).with_context(|| format!("mapping {bytes} bytes"))?,
            generation,
        }));
        // Held from before others can find it until it is filled.
        let mut filling = lock(&allocation);
        {
            let mut by_id = lock(&self.by_id);
            if by_id.contains_key(&id) {
                bail!("allocation {id} exists already: free it first or take another id");
            }
            by_id.insert(id, Arc::clone(&allocation));
        }
        pattern::fill(filling.mapping.words_mut(), id, generation);
        drop(promise);
        Ok(())
    }

    /// Overwrites with another generation.
    pub(crate) fn rewrite(&self, id: u32, generation: u16) -> Result<()> {
        let allocation = self.find(id)?;
        let mut allocation = lock(&allocation);
        pattern::fill(allocation.mapping.words_mut(), id, generation);
        allocation.generation = generation;
        Ok(())
    }

    /// Compares all contents.
    pub(crate) fn verify(&self, id: u32) -> Result<Verified> {
        let allocation = self.find(id)?;
        let allocation = lock(&allocation);
        Ok(pattern::verify(allocation.mapping.words(), id, allocation.generation))
    }

    /// Unmaps.
    pub(crate) fn free(&self, id: u32) -> Result<()> {
        let allocation = lock(&self.by_id).remove(&id).with_context(|| missing(id))?;
        // Another command may still use it; only when that is over is the memory free, and the
        // host was promised that it is.
        let unused = Arc::try_unwrap(allocation).map(drop);
        if let Err(allocation) = unused {
            let mut allocation = lock(&allocation);
            allocation.mapping = Mapping::default();
        }
        Ok(())
    }

    fn find(&self, id: u32) -> Result<Arc<Mutex<Allocation>>> {
        lock(&self.by_id).get(&id).cloned().with_context(|| missing(id))
    }

    /// Checks that `bytes` fit beside all that is promised, and promises them.
    fn promise(&self, bytes: u64) -> Result<Promise<'_>> {
        let mut promised = lock(&self.promised_bytes);
        let available = crate::system::meminfo()?.bytes("MemAvailable");
        let wanted = promised.saturating_add(bytes).saturating_add(RESERVE_BYTES);
        if wanted > available {
            bail!(
                "{bytes} bytes do not fit: the guest has {available} bytes available, of which \
                 {RESERVE_BYTES} stay reserved and {promised} are promised to other allocations"
            );
        }
        *promised += bytes;
        Ok(Promise { promised_bytes: &self.promised_bytes, bytes })
    }
}

/// Bytes that are promised for as long as this lives.
struct Promise<'a> {
    promised_bytes: &'a Mutex<u64>,
    bytes: u64,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        *lock(self.promised_bytes) -= self.bytes;
    }
}

fn missing(id: u32) -> String {
    format!("there is no allocation {id}")
}

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// Checks the size of a mapping.
pub(crate) fn length(bytes: u64) -> Result<NonZero<usize>> {
    let page_bytes = u64::try_from(pattern::PAGE_BYTES)?;
    if !bytes.is_multiple_of(page_bytes) {
        bail!("{bytes} is not a multiple of the page size {page_bytes}");
    }
    NonZero::new(usize::try_from(bytes)?).context("0 bytes asked for")
}

/// Private memory. The empty one maps nothing.
#[derive(Default)]
pub(crate) struct Mapping {
    /// Start, and length in bytes, a multiple of the page size.
    memory: Option<(NonNull<u64>, NonZero<usize>)>,
}

// SAFETY: the mapping is owned memory like a `Box<[u64]>`: it belongs to no thread.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        Self::anonymous(bytes, MapFlags::MAP_PRIVATE)
    }

    /// Memory that a process shares with its children.
    pub(crate) fn shared(bytes: u64) -> Result<Self> {
        Self::anonymous(bytes, MapFlags::MAP_SHARED)
    }

    /// Private huge pages of the default size.
    pub(crate) fn of_huge_pages(bytes: u64) -> Result<Self> {
        Self::anonymous(bytes, MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB)
    }

    fn anonymous(bytes: u64, flags: MapFlags) -> Result<Self> {
        let length = length(bytes)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { mmap_anonymous(None, length, READ_WRITE, flags) }?;
        Ok(Self { memory: Some((start.cast(), length)) })
    }

    /// The first `bytes` of a file that is never truncated; what is written stays here.
    pub(crate) fn of_file(file: &File, bytes: u64) -> Result<Self> {
        let length = length(bytes)?;
        // SAFETY: as in `new`.
        let start = unsafe { mmap(None, length, READ_WRITE, MapFlags::MAP_PRIVATE, file, 0) }?;
        Ok(Self { memory: Some((start.cast(), length)) })
    }

    /// Asks for huge pages, which a kernel need not have.
    pub(crate) fn advise_huge_pages(&mut self) {
        if let Some((start, length)) = self.memory {
            // SAFETY: the advice changes neither contents nor access.
            let _ = unsafe { madvise(start.cast(), length.get(), MmapAdvise::MADV_HUGEPAGE) };
        }
    }

    /// Has the kernel fault these pages in, for writing. Fails before Linux 5.14.
    pub(crate) fn populate(&mut self, pages: Range<usize>) -> Result<()> {
        let some = self
            .words_mut()
            .get_mut(pages.start * pattern::PAGE_WORDS..pages.end * pattern::PAGE_WORDS)
            .context("pages beyond the mapping")?;
        let (start, length) = (NonNull::from(&mut *some).cast(), size_of_val(some));
        // SAFETY: the range is a part of the mapping, which is borrowed exclusively; contents stay.
        unsafe { madvise(start, length, MmapAdvise::MADV_POPULATE_WRITE) }
            .context("populating pages")
    }

    /// Gives all pages back; the next write to each faults another in.
    pub(crate) fn drop_pages(&mut self) -> Result<()> {
        if let Some((start, length)) = self.memory {
            // SAFETY: private memory of which nobody holds a reference: `self` is borrowed exclusively.
            unsafe { madvise(start.cast(), length.get(), MmapAdvise::MADV_DONTNEED) }
                .context("dropping pages")?;
        }
        Ok(())
    }

    /// Where it lies, and its length in bytes; nothing of the empty one.
    pub(crate) fn range(&self) -> Option<(NonNull<u64>, NonZero<usize>)> {
        self.memory
    }

    pub(crate) fn words(&self) -> &[u64] {
        let Some((start, length)) = self.memory else {
            return &[];
        };
        // SAFETY: the mapping is page-aligned, readable, filled by the kernel, as long as it says
        // and lives as long as `self`, which is borrowed.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), length.get() / size_of::<u64>()) }
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        let Some((start, length)) = self.memory else {
            return &mut [];
        };
        // SAFETY: as in `words`; writable, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length.get() / size_of::<u64>()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some((start, length)) = self.memory {
            // SAFETY: the range is the whole of a mapping with no other user.
            if let Err(error) = unsafe { munmap(start.cast(), length.get()) } {
                eprintln!("guest-agent: munmap of {length} bytes: {error}");
            }
        }
    }
}
