// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The regions of guest memory that a frontend has announced, checked one by one before they are
//! mapped.
//!
//! vm-memory 0.18 maps a region that its file does not hold (a touch of it is SIGBUS), and ignores
//! that a mapping of huge pages cannot be removed in part.

use std::fmt;

/// The most regions at a time, which is what `VHOST_USER_GET_MAX_MEM_SLOTS` says (the framework's
/// answer).
pub(super) const MOST_AREAS: usize = 509;

/// A region as a frontend announces it. All numbers are the frontend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    /// Guest physical address.
    pub(super) gpa: u64,
    /// Length in bytes.
    pub(super) bytes: u64,
    /// Where the frontend has mapped it.
    pub(super) user: u64,
    /// Where it begins in its file.
    pub(super) offset: u64,
}

impl Area {
    /// Four `u64`, as they come in `VHOST_USER_SET_MEM_TABLE` and, behind a padding, in
    /// `VHOST_USER_ADD_MEM_REG`.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let number = |index: usize| {
            let bytes = bytes.get(8 * index..)?.first_chunk()?;
            Some(u64::from_ne_bytes(*bytes))
        };
        Some(Self { gpa: number(0)?, bytes: number(1)?, user: number(2)?, offset: number(3)? })
    }

    pub(super) fn write(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let numbers = [self.gpa, self.bytes, self.user, self.offset];
        for (to, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// Whether it can be mapped from a file of this size, of pages of this size, and be removed.
    pub(super) fn fits(&self, file: FileSize) -> Result<(), AreaFault> {
        let page = file.page_bytes;
        if self.bytes == 0 {
            return Err(AreaFault::Empty);
        }
        let end = |start: u64| start.checked_add(self.bytes);
        let (Some(_), Some(_), Some(file_end)) = (end(self.gpa), end(self.user), end(self.offset))
        else {
            return Err(AreaFault::Overflows);
        };
        // Of base pages the last one may be used in part: the kernel maps and removes all of it.
        if !self.offset.is_multiple_of(page) || file.huge && !self.bytes.is_multiple_of(page) {
            return Err(AreaFault::Unaligned { page_bytes: page });
        }
        if file_end > file.bytes {
            return Err(AreaFault::PastTheFile { file_bytes: file.bytes });
        }
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet =
            |a: u64, b: u64| a < b.saturating_add(other.bytes) && b < a.saturating_add(self.bytes);
        meet(self.gpa, other.gpa) || meet(self.user, other.user)
    }

    fn holds_user(&self, user: u64) -> bool {
        user.checked_sub(self.user).is_some_and(|into| into < self.bytes)
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpa, bytes, offset, .. } = self;
        write!(f, "{bytes} bytes at guest address {gpa:#x}, from byte {offset} of its file")
    }
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileSize {
    /// Its length.
    pub(super) bytes: u64,
    /// The size of its pages.
    pub(super) page_bytes: u64,
    /// Whether these are hugetlbfs's.
    pub(super) huge: bool,
}

/// What is wrong with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AreaFault {
    /// It has no bytes.
    #[error("expected at least one page")]
    Empty,
    /// It passes the end of an address space, or of all files.
    #[error("it passes 2^64")]
    Overflows,
    /// It is no whole number of pages.
    #[error("expected an offset and, of huge pages, a length in pages of {page_bytes} bytes")]
    Unaligned {
        /// The size of its file's pages.
        page_bytes: u64,
    },
    /// Its file is shorter.
    #[error("its file ends at byte {file_bytes}")]
    PastTheFile {
        /// The length of its file.
        file_bytes: u64,
    },
    /// Another one lies there.
    #[error("it overlaps another region, of guest memory or of the frontend's addresses")]
    Overlaps,
    /// There is no room.
    #[error("it would be region {}, expected at most {most}{}", .most + 1, low_limit(*.most))]
    TooMany {
        /// How many there may be.
        most: usize,
    },
}

fn low_limit(most: usize) -> &'static str {
    if most < MOST_AREAS {
        ", half of this process's limit for open files: raise it (ulimit -n)"
    } else {
        ""
    }
}

/// All regions of the moment.
#[derive(Debug)]
pub(super) struct Areas {
    areas: Vec<Area>,
    most: usize,
}

impl Areas {
    /// None yet, and never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { areas: Vec::new(), most: most.min(MOST_AREAS) }
    }

    /// One more.
    pub(super) fn add(&mut self, area: Area) -> Result<(), AreaFault> {
        if self.areas.len() >= self.most {
            return Err(AreaFault::TooMany { most: self.most });
        }
        if self.areas.iter().any(|other| other.overlaps(&area)) {
            return Err(AreaFault::Overlaps);
        }
        self.areas.push(area);
        Ok(())
    }

    /// One less, if it is there. The rest of what the frontend says of it does not matter.
    pub(super) fn remove(&mut self, gone: Area) {
        self.areas.retain(|area| (area.gpa, area.bytes) != (gone.gpa, gone.bytes));
    }

    /// None any more; those that there were.
    pub(super) fn take(&mut self) -> Vec<Area> {
        std::mem::take(&mut self.areas)
    }

    /// Whether this address of the frontend's lies in one of them.
    pub(super) fn hold_user(&self, user: u64) -> bool {
        self.areas.iter().any(|area| area.holds_user(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const HUGE: u64 = 2 << 20;

    /// Every combination of sizes, offsets and alignments around the borders, for base and for huge
    /// pages: what is admitted can be mapped, touched at both ends, and removed.
    #[test]
    fn what_fits_can_be_touched_and_removed() {
        let around = |at: u64| [at.saturating_sub(1), at, at.saturating_add(1)];
        let marks = [0, PAGE, HUGE, 2 * HUGE, 3 * HUGE, 1 << 63, u64::MAX - HUGE, u64::MAX];
        let numbers: Vec<u64> = marks.into_iter().flat_map(around).collect();
        let mut admitted = 0;
        for (page_bytes, huge) in [(PAGE, false), (HUGE, true)] {
            for file in numbers.iter().copied() {
                for offset in numbers.iter().copied() {
                    for bytes in numbers.iter().copied() {
                        for gpa in [0, 1 << 32, u64::MAX - HUGE, u64::MAX] {
                            let area = Area { gpa, bytes, user: gpa, offset };
                            let file = FileSize { bytes: file, page_bytes, huge };
                            let possible = bytes > 0
                                && offset.is_multiple_of(page_bytes)
                                && (!huge || bytes.is_multiple_of(page_bytes))
                                && gpa.checked_add(bytes).is_some()
                                && offset.checked_add(bytes).is_some_and(|end| end <= file.bytes);
                            assert_eq!(area.fits(file).is_ok(), possible, "{area:?} {file:?}");
                            admitted += usize::from(possible);
                        }
                    }
                }
            }
        }
        assert!(admitted > 100, "{admitted}");
    }

    fn area(gpa: u64, user: u64) -> Area {
        Area { gpa, bytes: 2 * PAGE, user, offset: 0 }
    }

    #[test]
    fn regions_neither_overlap_nor_pass_their_number() {
        let mut areas = Areas::new(2);
        areas.add(area(0, 1 << 40)).unwrap();
        assert_eq!(areas.add(area(PAGE, 2 << 40)), Err(AreaFault::Overlaps));
        assert_eq!(areas.add(area(1 << 32, (1 << 40) + PAGE)), Err(AreaFault::Overlaps));
        areas.add(area(2 * PAGE, (1 << 40) + 2 * PAGE)).unwrap();
        let error = areas.add(area(1 << 32, 3 << 40)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("region 3, expected at most 2, half of"), "{text}");
        areas.remove(area(0, 0));
        areas.add(area(1 << 32, 3 << 40)).unwrap();
        assert!(areas.hold_user((3 << 40) + 2 * PAGE - 1));
        assert!(!areas.hold_user((3 << 40) + 2 * PAGE));
        assert!(!areas.hold_user(1 << 40));
        assert_eq!(Areas::new(usize::MAX).most, 509);
    }

    #[test]
    fn a_region_is_read_as_it_was_written() {
        let area = Area { gpa: 1, bytes: 2, user: 3, offset: 4 };
        assert_eq!(Area::read(&area.write()), Some(area));
        assert_eq!(Area::read(&area.write()[..31]), None);
    }
}
