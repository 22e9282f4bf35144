// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest RAM in memory files that can be handed to a vhost-user backend.

use anyhow::{Context, Result, ensure};
use guest_driver::ram::{Gpa, GpaRange, GuestRam, RamError};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, fstat, ftruncate, memfd_create, openat},
    mm::{Advice, madvise},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};
use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion,
};

mod contents;
mod layout;

pub use contents::{Mismatch, PageState};
pub use layout::{Backing, RamLayout, Region};

/// What `st_blocks` counts in.
const STAT_BLOCK_BYTES: u64 = 512;

/// Guest RAM: memory files, mapped shared, nothing reserved or populated. Clones share it.
///
/// What the guest does goes through the mapping. What a test looks at is read from the files
/// instead, because touching a hole through a shared mapping fills it.
#[derive(Clone, Debug)]
pub struct Ram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: GuestMemoryMmap,
    files: Vec<Arc<File>>,
    regions: Vec<Region>,
    page_bytes: Vec<u64>,
}

/// A piece of a range that lies in one region.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The region's index, in the order of their addresses.
    pub region: usize,
    /// The piece.
    pub range: GpaRange,
    /// Where it starts in the region's file, in bytes.
    pub file_offset: u64,
}

impl Ram {
    /// Creates the files of `layout` and maps its regions.
    ///
    /// # Errors
    /// An impossible layout, or what the kernel says to the files and mappings; of hugetlb pages
    /// there may be too few.
    pub fn new(layout: &RamLayout) -> Result<Self> {
        let regions = layout.checked_regions()?;
        let mut files = Vec::new();
        for (index, backing) in layout.files().iter().enumerate() {
            let file = create_file(*backing, layout.file_bytes(index))
                .with_context(|| format!("memory file {index}, {backing:?}"))?;
            files.push(Arc::new(file));
        }
        let mut mapped = Vec::new();
        for region in &regions {
            let offset = FileOffset::from_arc(Arc::clone(&files[region.file]), region.file_offset);
            let mapping = MmapRegion::build(
                Some(offset),
                usize::try_from(region.range.len())?,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
            )
            .with_context(|| format!("cannot map {}", region.range))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(region.range.start().0))
                .with_context(|| format!("{} passes 2^64", region.range))?;
            mapped.push(region);
        }
        let page_bytes = regions.iter().map(|r| layout.files()[r.file].page_bytes()).collect();
        let memory = GuestMemoryMmap::from_regions(mapped).context("the regions do not fit")?;
        Ok(Self(Arc::new(Inner { memory, files, regions, page_bytes })))
    }

    /// The regions in the order of their addresses.
    pub fn regions(&self) -> &[Region] {
        &self.0.regions
    }

    /// Page size of a region's backing in bytes: the smallest piece that can be discarded.
    ///
    /// # Panics
    /// Without such a region.
    pub fn page_bytes(&self, region: usize) -> u64 {
        self.0.page_bytes[region]
    }

    /// The pieces of `range`, one a region, and nothing for what is not RAM.
    pub fn segments(&self, range: GpaRange) -> impl Iterator<Item = Segment> + '_ {
        self.0.regions.iter().enumerate().filter_map(move |(index, region)| {
            let part = region.range.intersection(range)?;
            let into_region = part.start().0 - region.range.start().0;
            Some(Segment {
                region: index,
                range: part,
                file_offset: region.file_offset + into_region,
            })
        })
    }

    /// Whether every byte of `range` is RAM.
    pub fn contains(&self, range: GpaRange) -> bool {
        self.segments(range).map(|segment| segment.range.len()).sum::<u64>() == range.len()
    }

    /// The parts of `range` that can be discarded: its pieces, one a region, rounded inward to whole pages of what
    /// backs them.
    pub fn whole_pages(&self, range: GpaRange) -> impl Iterator<Item = GpaRange> + '_ {
        self.segments(range).filter_map(|segment| {
            let page = self.page_bytes(segment.region);
            let end = segment.file_offset + segment.range.len();
            let first = segment.file_offset.next_multiple_of(page);
            let len = (end - end % page).checked_sub(first).filter(|len| *len > 0)?;
            let start = segment.range.start().checked_add(first - segment.file_offset)?;
            GpaRange::new(start, len)
        })
    }

    /// A region as vhost-user's memory messages name it; valid as long as this RAM is.
    ///
    /// # Errors
    /// Without such a region.
    pub fn region_info(&self, region: usize) -> Result<VhostUserMemoryRegionInfo> {
        let mapped = self.0.memory.iter().nth(region);
        let mapped = mapped.with_context(|| format!("there is no region {region}"))?;
        Ok(VhostUserMemoryRegionInfo::from_guest_region(mapped)?)
    }

    /// What the process calls the byte at `at`, which is how vhost-user names rings.
    ///
    /// # Errors
    /// When `at` is not RAM.
    pub fn user_addr(&self, at: Gpa) -> Result<u64> {
        Ok(self.host_pointer(at)? as u64)
    }

    fn host_pointer(&self, at: Gpa) -> Result<*mut u8> {
        let pointer = self.0.memory.get_host_address(GuestAddress(at.0));
        pointer.with_context(|| format!("{at} is not RAM"))
    }

    /// The memory file of index `file`.
    ///
    /// # Panics
    /// Without such a file.
    pub fn file(&self, file: usize) -> BorrowedFd<'_> {
        self.0.files[file].as_fd()
    }

    /// What all the files hold at present, in bytes.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn resident_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for file in &self.0.files {
            let blocks = u64::try_from(fstat(file)?.st_blocks)?;
            bytes += blocks * STAT_BLOCK_BYTES;
        }
        Ok(bytes)
    }

    /// Asks for transparent huge pages, as QEMU and others do for their guests' RAM. Whether there
    /// are any is `/sys/kernel/mm/transparent_hugepage/shmem_enabled`'s to say.
    ///
    /// # Errors
    /// What `madvise` says.
    pub fn advise_huge_pages(&self) -> Result<()> {
        for region in &self.0.regions {
            self.advise(region.range, Advice::LinuxHugepage)?;
        }
        Ok(())
    }

    /// Fills every hole of `range` with zeroed pages. Needs Linux 5.14.
    ///
    /// # Errors
    /// When `range` is not all RAM, or memory is out.
    pub fn populate(&self, range: GpaRange) -> Result<()> {
        self.advise(range, Advice::LinuxPopulateWrite)
    }

    /// Drops this process's pages of `range` from its page tables (`MADV_DONTNEED`). The memory
    /// files keep them.
    ///
    /// # Errors
    /// When `range` is not all RAM.
    pub fn forget(&self, range: GpaRange) -> Result<()> {
        self.advise(range, Advice::LinuxDontNeed)
    }

    fn advise(&self, range: GpaRange, advice: Advice) -> Result<()> {
        ensure!(self.contains(range), "{range} is not all RAM");
        for segment in self.segments(range) {
            let start = self.host_pointer(segment.range.start())?.cast();
            let len = usize::try_from(segment.range.len())?;
            // SAFETY: the segment lies in one of our own mappings, which lives as long as `self`,
            // and no advice that is given changes what the memory holds, since it is shared.
            unsafe { madvise(start, len, advice) }
                .with_context(|| format!("{advice:?} for {}", segment.range))?;
        }
        Ok(())
    }
}

fn create_file(backing: Backing, bytes: u64) -> Result<File> {
    let memfd = |flags| memfd_create("guest-ram", MemfdFlags::CLOEXEC | flags);
    let file = File::from(match backing {
        Backing::Memfd => memfd(MemfdFlags::ALLOW_SEALING)?,
        Backing::Hugetlb { page_bytes } => {
            // The kernel takes the page size's logarithm (MFD_HUGE_SHIFT).
            let log2 = page_bytes.ilog2() << 26;
            memfd(MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(log2))?
        }
        // No limit, as for a memfd.
        Backing::Transparent => tmpfs_file("0", "always")?,
        Backing::LimitedTmpfs { limit_bytes } => tmpfs_file(&limit_bytes.to_string(), "never")?,
        Backing::File => tempfile::tempfile()?.into(),
    });
    ftruncate(&file, bytes)?;
    Ok(file)
}

/// A file of a tmpfs that is mounted nowhere and goes with it.
fn tmpfs_file(size: &str, huge: &str) -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "huge", huge)?;
    fsconfig_set_string(&context, "size", size)?;
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(&mount, "guest-ram", flags, Mode::RUSR | Mode::WUSR)?)
}

impl GuestRam for Ram {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
        let error = RamError::OutOfRange { at, len: into.len() };
        self.0.memory.read_slice(into, GuestAddress(at.0)).map_err(|_| error)
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
        let error = RamError::OutOfRange { at, len: from.len() };
        self.0.memory.write_slice(from, GuestAddress(at.0)).map_err(|_| error)
    }

    fn load_u16(&self, at: Gpa, order: Ordering) -> Result<u16, RamError> {
        let word: u16 = self
            .0
            .memory
            .load(GuestAddress(check_even(at)?), order)
            .map_err(|_| RamError::OutOfRange { at, len: size_of::<u16>() })?;
        Ok(u16::from_le(word))
    }

    fn store_u16(&self, at: Gpa, value: u16, order: Ordering) -> Result<(), RamError> {
        self.0
            .memory
            .store(value.to_le(), GuestAddress(check_even(at)?), order)
            .map_err(|_| RamError::OutOfRange { at, len: size_of::<u16>() })
    }
}

fn check_even(at: Gpa) -> Result<u64, RamError> {
    let align = align_of::<u16>();
    if at.0.is_multiple_of(align as u64) {
        Ok(at.0)
    } else {
        Err(RamError::Misaligned { at, align })
    }
}

#[cfg(test)]
mod tests;
