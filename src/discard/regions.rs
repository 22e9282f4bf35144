// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What backs each region of guest memory: a file, an offset in it, and the size of its pages.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Address, FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use super::ranges::{GuestRange, round_inward};
use super::{GuestMemory, GuestRegion, MemoryOptions};
use crate::metrics::SkipReason;

/// Why a memory table from the frontend cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegionError {
    /// The region has no file, so that nothing can be discarded.
    #[error("memory region at guest address {0:#x} has no file behind it")]
    NoFile(u64),
    /// The region is empty or passes the end of the address space.
    #[error("memory region at guest address {gpa:#x} of {len} bytes is not a range")]
    NotARange {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The file would not tell what it is.
    #[error("cannot tell what backs the memory region at guest address {gpa:#x}")]
    Backing {
        /// Guest physical address.
        gpa: u64,
        /// What `fstatfs` or `fcntl` said.
        #[source]
        source: io::Error,
    },
}

/// One region of guest memory and the file that backs it. The file is asked once what it is.
#[derive(Debug)]
pub(crate) struct Region {
    range: GuestRange,
    file: Arc<File>,
    /// Device and inode number, which two descriptors of one file have in common.
    file_id: (u64, u64),
    /// See [`Region::file_index`].
    file_index: usize,
    /// Where in the file the first byte of the region lies.
    file_offset: u64,
    page_size: u64,
    /// See [`Region::is_zero_when_discarded`].
    zeroes: bool,
    kept: Arc<Kept>,
}

/// Why none of a region's pages can be discarded, as far as that is known: more is learned while it is
/// served.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The operator's options.
    gate: Option<SkipReason>,
    /// The file system cannot punch holes.
    cannot_punch: AtomicBool,
    /// The descriptor or a seal forbids to write the file, and so to punch it.
    read_only: AtomicBool,
}

impl Kept {
    /// The reason, if the pages are kept.
    pub(crate) fn reason(&self) -> Option<SkipReason> {
        let holds = |flag: &AtomicBool, reason| flag.load(Ordering::Relaxed).then_some(reason);
        self.gate
            .or_else(|| holds(&self.read_only, SkipReason::ReadOnly))
            .or_else(|| holds(&self.cannot_punch, SkipReason::CannotPunch))
    }
}

impl AsRef<GuestRange> for Region {
    fn as_ref(&self) -> &GuestRange {
        &self.range
    }
}

impl Region {
    fn new(range: GuestRange, backing: &FileOffset, options: MemoryOptions) -> io::Result<Self> {
        let metadata = backing.file().metadata()?;
        let file_system = FileSystem::of(backing.file())?;
        Ok(Self {
            range,
            file: Arc::clone(backing.arc()),
            file_id: (metadata.dev(), metadata.ino()),
            file_index: 0,
            file_offset: backing.start(),
            page_size: file_system.page_size,
            zeroes: file_system.memory,
            kept: Arc::new(Kept {
                gate: file_system.gate(options),
                cannot_punch: AtomicBool::new(false),
                read_only: AtomicBool::new(refuses_writes(backing.file())?),
            }),
        })
    }

    /// The file that backs the region.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Which of the files of its table backs the region: two regions of one file have the same.
    pub(crate) fn file_index(&self) -> usize {
        self.file_index
    }

    /// Size in bytes of the pages that the file is made of, a power of two.
    pub(crate) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Whether it is memory of hugetlbfs. Only there are pages larger than the host's base pages
    /// freed as a whole.
    pub(crate) fn is_hugetlb(&self) -> bool {
        self.page_size > base_page_size()
    }

    /// Whether what was discarded reads as zero through every shared mapping, without a disk in
    /// between. Only of tmpfs, where memfds live, and hugetlbfs is that said.
    pub(crate) fn is_zero_when_discarded(&self) -> bool {
        self.zeroes
    }

    /// Why none of its pages can be discarded, as far as that is known.
    pub(crate) fn kept(&self) -> Option<SkipReason> {
        self.kept.reason()
    }

    /// The same for others than the session, whose files and memory it does not keep.
    pub(super) fn kept_later(&self) -> Arc<Kept> {
        Arc::clone(&self.kept)
    }

    /// Takes note of what a failed discarding call says of all later ones. Returns why the region is
    /// kept from now on, if that is news.
    pub(crate) fn learn(&self, error: &io::Error) -> Option<SkipReason> {
        let before = self.kept();
        match error.raw_os_error() {
            // The file system or the kind of file has no such call; that does not pass.
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ESPIPE) => {
                self.kept.cannot_punch.store(true, Ordering::Relaxed);
            }
            // A seal may have come after the memory table.
            _ => {
                self.look_again();
            }
        }
        self.kept().filter(|_| before.is_none())
    }

    /// Whether every page of the file was allocated when this is asked: its VMM was promised the
    /// memory (`prealloc`).
    pub(crate) fn is_allocated_in_full(&self) -> bool {
        let metadata = self.file.metadata();
        metadata.is_ok_and(|file| file.len() > 0 && file.blocks().saturating_mul(512) >= file.len())
    }

    /// Asks the file again whether it may be written, after it refused to be punched, and says
    /// whether it may not.
    ///
    /// Through a mapping that is there already `F_SEAL_FUTURE_WRITE` lets the guest write on.
    pub(crate) fn look_again(&self) -> bool {
        let read_only = refuses_writes(&self.file).unwrap_or(false);
        self.kept.read_only.fetch_or(read_only, Ordering::Relaxed);
        read_only
    }

    /// The part of `range`, which lies in this region, that fills whole pages of the file, as offsets
    /// in the file; `None` if there is none.
    pub(crate) fn whole_pages(&self, range: GuestRange) -> Option<GuestRange> {
        let offset = self.offset_of(range.start())?;
        let (first, len) = round_inward(offset, range.len(), self.page_size)?;
        GuestRange::new(first, len).ok()
    }

    /// Where in the file the guest physical address `gpa` of this region lies, in bytes.
    ///
    /// `None` if the address is not in the region.
    pub(crate) fn offset_of(&self, gpa: u64) -> Option<u64> {
        if gpa >= self.range.end() {
            return None;
        }
        self.file_offset.checked_add(gpa.checked_sub(self.range.start())?)
    }

    /// `range`, which lies in this region, as offsets in the file.
    pub(crate) fn file_range(&self, range: GuestRange) -> Option<GuestRange> {
        GuestRange::new(self.offset_of(range.start())?, range.len()).ok()
    }

    /// The guest addresses of the part of `offsets` of the file that this region shows, if it shows
    /// any of them.
    pub(crate) fn guest_range(&self, offsets: GuestRange) -> Option<GuestRange> {
        let shown_end = self.file_offset.saturating_add(self.range.len());
        let start = offsets.start().max(self.file_offset);
        let len = offsets.end().min(shown_end).checked_sub(start)?;
        GuestRange::new(self.range.start() + (start - self.file_offset), len).ok()
    }
}

#[cfg(test)]
impl Region {
    /// A region of a file of pages of `page_size` bytes, which is none: for the arithmetic alone.
    pub(super) fn of(range: GuestRange, file_offset: u64, page_size: u64) -> Self {
        let kept = Kept {
            gate: None,
            cannot_punch: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
        };
        Self {
            range,
            file: Arc::new(File::open("/dev/null").unwrap()),
            file_id: (0, 0),
            file_index: 0,
            file_offset,
            page_size,
            zeroes: true,
            kept: Arc::new(kept),
        }
    }
}

#[cfg(test)]
impl RegionTable {
    /// Regions of one file, by address.
    pub(super) fn of(regions: Vec<Region>) -> Self {
        Self { regions, files: 1 }
    }
}

/// All regions of the guest's memory, in ascending order of guest physical address.
#[derive(Debug, Default)]
pub(crate) struct RegionTable {
    regions: Vec<Region>,
    files: usize,
}

impl RegionTable {
    /// Reads the table off the memory map that a frontend has sent.
    ///
    /// # Errors
    /// [`RegionError`] if a region is not backed by a file that can be asked for its page size.
    pub(crate) fn new(memory: &GuestMemory, options: MemoryOptions) -> Result<Self, RegionError> {
        // `GuestMemoryMmap` keeps its regions sorted, and lets none overlap.
        let regions = memory.iter().map(|region| region_of(region, options));
        let mut regions = regions.collect::<Result<Vec<_>, _>>()?;
        let mut files = HashMap::new();
        for region in &mut regions {
            let next = files.len();
            region.file_index = *files.entry(region.file_id).or_insert(next);
        }
        Ok(Self { regions, files: files.len() })
    }

    /// How many different files there are.
    pub(crate) fn files(&self) -> usize {
        self.files
    }

    /// Bytes of all regions.
    pub(crate) fn bytes(&self) -> u64 {
        // They do not overlap in 64 bits of addresses.
        self.regions.iter().map(|region| region.range.len()).sum()
    }

    /// The regions, sorted by address.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }
}

fn region_of(region: &GuestRegion, options: MemoryOptions) -> Result<Region, RegionError> {
    let gpa = region.start_addr().raw_value();
    let len = region.len();
    let range = GuestRange::new(gpa, len).map_err(|_| RegionError::NotARange { gpa, len })?;
    let backing = region.file_offset().ok_or(RegionError::NoFile(gpa))?;
    Region::new(range, backing, options).map_err(|source| RegionError::Backing { gpa, source })
}

/// What a file system means for discarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileSystem {
    /// Size in bytes of the smallest part of a file that a punch can free.
    ///
    /// On hugetlbfs that is the huge page: a smaller punch zeroes and frees nothing. Everywhere else
    /// it is the base page, transparent huge pages included, which the kernel splits.
    page_size: u64,
    hugetlb: bool,
    /// Memory, and no disk.
    memory: bool,
    /// A tmpfs that others can fill. The kernel's own one, where memfds live, has no limit.
    limited_tmpfs: bool,
}

impl FileSystem {
    fn of(file: &File) -> io::Result<Self> {
        // SAFETY: an all-zero statfs is a valid value of that plain C structure.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open as long as `file` lives, and `stat` is writable memory of
        // the structure's size.
        if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Its type has a sign with glibc, and none with musl.
        let is = |magic: i64| i128::from(stat.f_type) == i128::from(magic);
        let (hugetlb, tmpfs) = (is(libc::HUGETLBFS_MAGIC), is(libc::TMPFS_MAGIC));
        Ok(Self {
            page_size: match hugetlb {
                true => u64::try_from(stat.f_bsize).map_err(io::Error::other)?,
                false => base_page_size(),
            },
            hugetlb,
            memory: hugetlb || tmpfs,
            limited_tmpfs: tmpfs && stat.f_blocks > 0,
        })
    }

    /// Space that others may take goes only where the operator says so: a guest that touches its
    /// page again when there is none left is killed.
    fn gate(self, options: MemoryOptions) -> Option<SkipReason> {
        match self {
            Self { hugetlb: true, .. } if !options.hugetlb => Some(SkipReason::Hugetlb),
            Self { limited_tmpfs: true, .. } if !options.limited_tmpfs => {
                Some(SkipReason::LimitedTmpfs)
            }
            _ => None,
        }
    }
}

/// Whether the kernel would refuse to punch `file` because it may not be written.
fn refuses_writes(file: &File) -> io::Result<bool> {
    // SAFETY: fcntl on an open descriptor, without pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above. Files that know no seals answer with an error, which is no seal.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    let sealed = seals > 0 && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0;
    Ok(sealed || flags & libc::O_ACCMODE == libc::O_RDONLY)
}

/// Size in bytes of the host's base pages.
pub(super) fn base_page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(page_size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, MmapRegion};

    #[test]
    fn the_table_knows_file_offsets_and_page_sizes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x10000).unwrap();
        let region = |gpa, offset, len| {
            let backing = FileOffset::new(file.try_clone().unwrap(), offset);
            let mapped = MmapRegion::from_file(backing, len).unwrap();
            GuestRegion::new(mapped, GuestAddress(gpa)).unwrap()
        };
        let memory = GuestMemory::from_regions(vec![
            region(0, 0, 0x8000),
            region(0x1_0000_0000, 0x8000, 0x8000),
        ])
        .unwrap();
        let table = RegionTable::new(&memory, MemoryOptions::default()).unwrap();
        let [low, high] = table.regions() else { panic!("two regions") };
        assert_eq!(low.as_ref().start(), 0);
        assert_eq!(low.page_size(), 4096);
        assert_eq!(high.offset_of(0x1_0000_1000), Some(0x9000));
        assert_eq!(high.offset_of(0xffff_ffff), None);
        assert_eq!(high.offset_of(0x1_0000_8000), None);
    }

    /// Asking needs no huge page to be free: none is touched.
    #[test]
    fn the_pages_of_hugetlbfs_are_huge() {
        for shift in [21_u32, 30] {
            let flags = libc::MFD_HUGETLB | shift << libc::MFD_HUGE_SHIFT;
            // SAFETY: the name is a C string, and the descriptor is new and owned by nobody else.
            let file = unsafe {
                match libc::memfd_create(c"huge".as_ptr(), flags) {
                    // Not every processor has every size.
                    -1 => continue,
                    fd => <File as std::os::fd::FromRawFd>::from_raw_fd(fd),
                }
            };
            let file_system = FileSystem::of(&file).unwrap();
            assert_eq!(file_system.page_size, 1 << shift);
            assert_eq!(file_system.gate(MemoryOptions::default()), Some(SkipReason::Hugetlb));
        }
    }

    #[test]
    fn memory_without_a_file_is_refused() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        assert!(matches!(
            RegionTable::new(&memory, MemoryOptions::default()),
            Err(RegionError::NoFile(0))
        ));
    }
}
