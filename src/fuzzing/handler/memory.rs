// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of guest memory, and the tables by which a frontend shares them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{MemfdFlags, memfd_create};

pub(super) const PAGE: u64 = 4096;
const FILE_PAGES: u64 = 20;
/// Where the frontend has mapped guest address 0.
const USER: u64 = 1 << 40;
/// A mark at the end of each page: what rings begin with is zero.
const MARK: u64 = PAGE - 8;

/// A file, and a page of it.
pub(super) type FilePage = (usize, u64);

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) gpa: u64,
    pub(super) bytes: u64,
    pub(super) file: usize,
    pub(super) offset: u64,
}

const fn region(first: u64, pages: u64, file: usize, at: u64) -> Region {
    Region { gpa: first * PAGE, bytes: pages * PAGE, file, offset: at * PAGE }
}

/// Rings lie in the first ten pages. The fifth and the sixth show pages of others a second time.
pub(super) const REGIONS: [Region; 6] = [
    region(0, 10, 0, 0),
    region(0, 10, 1, 0),
    region(10, 6, 0, 10),
    region(16, 8, 1, 10),
    region(32, 6, 0, 10),
    region(40, 4, 1, 12),
];
/// Guest pages up to the end of the last region.
pub(super) const PAGES: u64 = 44;

impl Region {
    /// As it comes in `VHOST_USER_SET_MEM_TABLE`.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [self.gpa, self.bytes, user(self.gpa), self.offset].map(u64::to_ne_bytes).concat()
    }

    fn end(&self) -> u64 {
        self.gpa.saturating_add(self.bytes)
    }
}

/// The frontend's address of a guest address.
pub(super) fn user(gpa: u64) -> u64 {
    gpa.wrapping_add(USER)
}

/// What the daemon has said yes to.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(pub(super) Vec<Region>);

impl Table {
    /// Checks what no daemon may say yes to.
    pub(super) fn check(&self) {
        for (at, region) in self.0.iter().enumerate() {
            let end = region.offset.checked_add(region.bytes);
            assert!(
                region.bytes > 0 && end.is_some_and(|end| end <= FILE_PAGES * PAGE),
                "{region:?}"
            );
            assert_eq!(region.offset % PAGE, 0, "{region:?}");
            for other in &self.0[..at] {
                assert!(region.end() <= other.gpa || other.end() <= region.gpa, "{self:?}");
            }
        }
    }

    /// The page of a file that lies at a guest address as a whole.
    pub(super) fn page(&self, gpa: u64) -> Option<FilePage> {
        let holds = |region: &&Region| region.gpa <= gpa && gpa + PAGE <= region.end();
        let region = self.0.iter().find(holds)?;
        let offset = region.offset + gpa - region.gpa;
        (offset % PAGE == 0).then_some((region.file, offset / PAGE))
    }

    /// The pages of files of which every byte is named.
    pub(super) fn whole_pages(&self, named: &[(u64, u64)]) -> BTreeSet<FilePage> {
        let mut pages = BTreeSet::new();
        for region in &self.0 {
            for page in 0..region.bytes / PAGE {
                let gpa = region.gpa + page * PAGE;
                if covers(named, gpa, gpa + PAGE) {
                    pages.insert((region.file, region.offset / PAGE + page));
                }
            }
        }
        pages
    }

    /// The pages of files that a guest page touches.
    pub(super) fn touched(&self, gpa: u64) -> impl Iterator<Item = FilePage> {
        self.0.iter().flat_map(move |region| {
            let meets = move |page: &u64| {
                let at = region.gpa + page * PAGE;
                at < gpa + PAGE && gpa < region.end().min(at + PAGE)
            };
            let pages = (0..region.bytes.div_ceil(PAGE)).filter(meets);
            pages.map(|page| (region.file, region.offset / PAGE + page))
        })
    }
}

/// Whether the ranges together hold every byte from `at` to `end`.
fn covers(ranges: &[(u64, u64)], mut at: u64, end: u64) -> bool {
    while at < end {
        let holding = ranges.iter().filter(|(start, len)| *start <= at && at - start < *len);
        match holding.map(|(start, len)| start + len).max() {
            Some(until) => at = until,
            None => return false,
        }
    }
    true
}

/// The files, made once.
pub(super) struct Files {
    files: [File; 2],
    inodes: [u64; 2],
}

impl Files {
    pub(super) fn new() -> Self {
        let files = [(); 2].map(|()| {
            let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
            file.set_len(FILE_PAGES * PAGE).expect("its size");
            file
        });
        let inodes = files.each_ref().map(|file| file.metadata().expect("a file").ino());
        Self { files, inodes }
    }

    pub(super) fn fd(&self, file: usize) -> BorrowedFd<'_> {
        self.files[file].as_fd()
    }

    /// The file with this inode number.
    pub(super) fn by_inode(&self, inode: u64) -> usize {
        self.inodes.iter().position(|of| *of == inode).expect("a file of guest memory")
    }

    fn all() -> impl Iterator<Item = FilePage> {
        (0..2).flat_map(|file| (0..FILE_PAGES).map(move |page| (file, page)))
    }

    /// Zeros, and the marks.
    pub(super) fn clear(&self) {
        Self::all().for_each(|page| self.clear_page(page));
    }

    pub(super) fn clear_page(&self, page: FilePage) {
        let mut bytes = [0; 4096];
        bytes[4088..].copy_from_slice(&mark(page).to_ne_bytes());
        self.write(page, 0, &bytes);
    }

    /// Whether the page holds its mark; if not, it must be zero.
    pub(super) fn is_marked(&self, page: FilePage) -> bool {
        let found = u64::from_ne_bytes(self.read(page, MARK));
        assert!(found == mark(page) || found == 0, "{page:?} holds {found:#x}");
        found != 0
    }

    /// Every page holds its mark.
    pub(super) fn check(&self) {
        Self::all().for_each(|page| assert!(self.is_marked(page), "{page:?} was lost"));
    }

    pub(super) fn write(&self, (file, page): FilePage, at: u64, bytes: &[u8]) {
        self.files[file].write_all_at(bytes, page * PAGE + at).expect("a file of memory");
    }

    pub(super) fn read<const N: usize>(&self, (file, page): FilePage, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.files[file].read_exact_at(&mut bytes, page * PAGE + at).expect("a file of memory");
        bytes
    }
}

fn mark((file, page): FilePage) -> u64 {
    0xa5a5_0000 + (file as u64) * 256 + page
}
