// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest physical addresses, and how the guest's memory is reached.

use alloc::sync::Arc;
use core::{fmt, sync::atomic::Ordering};

/// A guest physical address, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further on, or `None` where that passes 2^64.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// `len` bytes of guest physical address space from `start`.
///
/// The end may be 2^64 at most; [`GpaRange::new`] is where that is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpaRange {
    start: u64,
    len: u64,
}

impl GpaRange {
    /// The range of `len` bytes from `start`, or `None` where its last byte lies past 2^64 - 1.
    pub const fn new(start: Gpa, len: u64) -> Option<Self> {
        if len > 0 && start.0.checked_add(len - 1).is_none() {
            return None;
        }
        Some(Self { start: start.0, len })
    }

    /// The range from `start` up to but not including `end`; empty where `end` is not beyond it.
    pub const fn between(start: Gpa, end: Gpa) -> Self {
        Self { start: start.0, len: end.0.saturating_sub(start.0) }
    }

    /// The first byte.
    pub const fn start(self) -> Gpa {
        Gpa(self.start)
    }

    /// The length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether the range holds no byte.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// One past the last byte, `None` where that is 2^64.
    pub const fn end(self) -> Option<Gpa> {
        self.start().checked_add(self.len)
    }

    /// What both ranges cover, `None` where they share no byte.
    pub fn intersection(self, other: Self) -> Option<Self> {
        if self.is_empty() || other.is_empty() {
            return None;
        }
        let start = self.start.max(other.start);
        // Inclusive ends: the exclusive one of a range that ends at 2^64 does not exist.
        let last = (self.start + (self.len - 1)).min(other.start + (other.len - 1));
        (start <= last).then(|| Self { start, len: last - start + 1 })
    }

    /// Whether `other` lies in this range; an empty range lies in any.
    pub fn contains(self, other: Self) -> bool {
        other.is_empty() || self.intersection(other) == Some(other)
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.start, self.len)
    }
}

/// Why guest memory could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// Some of the bytes are not guest memory.
    #[error("{len} bytes at {at} are not all guest memory")]
    OutOfRange {
        /// Where the access began.
        at: Gpa,
        /// Its length in bytes.
        len: usize,
    },
    /// An atomic access to an address that is not a multiple of its size.
    #[error("atomic access at {at} is not aligned to {align} bytes")]
    Misaligned {
        /// The address.
        at: Gpa,
        /// The alignment it needs, in bytes.
        align: usize,
    },
}

/// Guest memory, as the guest's own CPUs reach it.
///
/// The device works on the same bytes at the same time. Only the atomic accesses order anything;
/// the ring's protocol says which plain ones need no more than that (virtio 1.2, 2.7.13).
pub trait GuestRam {
    /// Copies `into.len()` bytes out of guest memory from `at`.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] where not all of them are guest memory.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError>;

    /// Copies `from` into guest memory at `at`.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] where not all the bytes are guest memory.
    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError>;

    /// Loads the little-endian 16-bit value at `at` in one access.
    ///
    /// # Errors
    /// [`RamError::Misaligned`] at an odd address, [`RamError::OutOfRange`] outside guest memory.
    fn load_u16(&self, at: Gpa, order: Ordering) -> Result<u16, RamError>;

    /// Stores a little-endian 16-bit value at `at` in one access.
    ///
    /// # Errors
    /// [`RamError::Misaligned`] at an odd address, [`RamError::OutOfRange`] outside guest memory.
    fn store_u16(&self, at: Gpa, value: u16, order: Ordering) -> Result<(), RamError>;
}

impl<T: GuestRam + ?Sized> GuestRam for &T {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
        (**self).read(at, into)
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
        (**self).write(at, from)
    }

    fn load_u16(&self, at: Gpa, order: Ordering) -> Result<u16, RamError> {
        (**self).load_u16(at, order)
    }

    fn store_u16(&self, at: Gpa, value: u16, order: Ordering) -> Result<(), RamError> {
        (**self).store_u16(at, value, order)
    }
}

impl<T: GuestRam + ?Sized> GuestRam for Arc<T> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
        (**self).read(at, into)
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
        (**self).write(at, from)
    }

    fn load_u16(&self, at: Gpa, order: Ordering) -> Result<u16, RamError> {
        (**self).load_u16(at, order)
    }

    fn store_u16(&self, at: Gpa, value: u16, order: Ordering) -> Result<(), RamError> {
        (**self).store_u16(at, value, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), len).unwrap()
    }

    #[test]
    fn range_may_end_at_the_top_of_the_address_space() {
        assert_eq!(range(u64::MAX, 1).end(), None);
        assert!(GpaRange::new(Gpa(u64::MAX), 2).is_none());
        assert_eq!(range(u64::MAX - 9, 10).intersection(range(u64::MAX, 1)).unwrap().len(), 1);
    }

    #[test]
    fn neighbours_do_not_intersect() {
        assert_eq!(range(0, 10).intersection(range(10, 10)), None);
        assert_eq!(range(0, 11).intersection(range(10, 10)), Some(range(10, 1)));
        assert!(range(0, 10).contains(range(3, 7)));
        assert!(!range(0, 10).contains(range(3, 8)));
        assert!(range(0, 10).contains(range(99, 0)));
    }
}
