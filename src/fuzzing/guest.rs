// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory of a target: three regions of two files, with a seam, a hole and a part of a file that the
//! guest sees twice. A plain copy of it is what the oracles read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, MmapRegion};

use crate::discard::{GuestMemory, GuestRegion, PunchHole};
use crate::lock::lock;

pub(crate) const PAGE: u64 = 4096;
/// Guest pages up to the end of the last region.
pub(crate) const PAGES: u64 = 20;
const FILE_PAGES: [u64; 2] = [8, 8];
/// First guest page, pages, file, and the page of the file with which the region begins.
const REGIONS: [(u64, u64, usize, u64); 3] = [(0, 8, 0, 0), (8, 4, 1, 3), (16, 4, 0, 2)];

/// The memory of one guest, made once and used by one execution after the other.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    files: [Arc<File>; 2],
}

/// What the files of a guest hold.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Image([Vec<u8>; 2]);

/// A file and an offset in it.
pub(crate) type FileByte = (usize, u64);

/// Where a guest address lies.
pub(crate) fn place(gpa: u64) -> Option<FileByte> {
    let page = gpa / PAGE;
    let region = REGIONS.iter().find(|(first, pages, ..)| (*first..first + pages).contains(&page));
    region.map(|(first, _, file, at)| (*file, (at + page - first) * PAGE + gpa % PAGE))
}

/// The guest addresses of a page of a file.
pub(crate) fn addresses(file: usize, page: u64) -> impl Iterator<Item = u64> {
    let all = (0..PAGES).map(|gpa| gpa * PAGE);
    all.filter(move |gpa| place(*gpa) == Some((file, page * PAGE)))
}

impl Guest {
    pub(crate) fn new() -> Self {
        let files = FILE_PAGES.map(|pages| {
            let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
            file.set_len(pages * PAGE).expect("its size");
            Arc::new(file)
        });
        let regions = REGIONS.map(|(first, pages, file, at)| {
            let backing = FileOffset::from_arc(Arc::clone(&files[file]), at * PAGE);
            let len = usize::try_from(pages * PAGE).expect("a length");
            let mapped = MmapRegion::from_file(backing, len).expect("a mapping");
            GuestRegion::new(mapped, GuestAddress(first * PAGE)).expect("a region")
        });
        let memory = GuestMemory::from_regions(regions.into()).expect("guest memory");
        Self { memory: Arc::new(memory), files }
    }

    /// Fills the memory with zeros.
    pub(crate) fn clear(&self) {
        let zeros = [0; 8 * 4096];
        for file in &self.files {
            file.write_all_at(&zeros, 0).expect("zeros");
        }
    }

    /// Writes as much of `bytes` as is memory.
    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        // What lies outside is not written.
        let _ = self.memory.write(bytes, GuestAddress(gpa));
    }

    pub(crate) fn image(&self) -> Image {
        Image(self.files.each_ref().map(|file| {
            let mut bytes = vec![0; 8 * 4096];
            file.read_exact_at(&mut bytes, 0).expect("the file");
            bytes
        }))
    }

    /// The index of the file that this is.
    fn file(&self, file: &File) -> usize {
        usize::from(file.as_raw_fd() == self.files[1].as_raw_fd())
    }
}

impl Image {
    /// The byte at a guest address.
    pub(crate) fn byte(&self, gpa: u64) -> Option<u8> {
        let (file, offset) = place(gpa)?;
        self.0[file].get(usize::try_from(offset).ok()?).copied()
    }

    /// `N` bytes from a guest address on; none if one of them is not memory.
    pub(crate) fn bytes<const N: usize>(&self, gpa: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = self.byte(gpa.checked_add(i as u64)?)?;
        }
        Some(bytes)
    }

    /// The guest addresses of bytes that differ.
    pub(crate) fn differences(&self, other: &Self) -> Vec<u64> {
        if self == other {
            return Vec::new();
        }
        (0..PAGES * PAGE).filter(|gpa| self.byte(*gpa) != other.byte(*gpa)).collect()
    }
}

/// Writes down what would be punched, and refuses the calls that the input says.
pub(crate) struct Recorder {
    pub(crate) guest: Arc<Guest>,
    /// How often each page of a file was punched.
    punched: Mutex<BTreeMap<(usize, u64), u64>>,
    /// Bit N of it refuses call N.
    refuses: Mutex<(u8, i32)>,
}

impl Recorder {
    pub(crate) fn new(guest: Arc<Guest>, refuses: u8, errno: i32) -> Self {
        Self { guest, punched: Mutex::default(), refuses: Mutex::new((refuses, errno)) }
    }

    /// The pages that were punched, each with how often.
    pub(crate) fn punched(&self) -> BTreeMap<(usize, u64), u64> {
        lock(&self.punched).clone()
    }
}

impl PunchHole for &Recorder {
    fn punch_hole(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        assert!(len > 0, "a call that discards nothing");
        assert_eq!((offset % PAGE, len % PAGE), (0, 0), "a call for parts of pages");
        let file = self.guest.file(file);
        assert!(offset + len <= FILE_PAGES[file] * PAGE, "a call past the end of the file");
        let mut refuses = lock(&self.refuses);
        let refused = refuses.0 & 1 != 0;
        refuses.0 >>= 1;
        if refused {
            return Err(io::Error::from_raw_os_error(refuses.1));
        }
        for page in offset / PAGE..(offset + len) / PAGE {
            *lock(&self.punched).entry((file, page)).or_default() += 1;
        }
        Ok(())
    }
}
