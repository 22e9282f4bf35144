// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory, mapped one to one.

use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering};

use guest_driver::ram::{Gpa, GuestRam, RamError};

/// The memory in which rings and buffers of the driver lie: from the first page up to `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) end: u64,
}

impl Identity {
    fn check(self, at: Gpa, len: usize) -> Result<(), RamError> {
        match at.checked_add(len as u64) {
            Some(end) if at.0 > 0 && end.0 <= self.end => Ok(()),
            _ => Err(RamError::OutOfRange { at, len }),
        }
    }

    fn word(self, at: Gpa) -> Result<&'static AtomicU16, RamError> {
        self.check(at, size_of::<u16>())?;
        if !at.0.is_multiple_of(2) {
            return Err(RamError::Misaligned { at, align: 2 });
        }
        // SAFETY: mapped and aligned; the device accesses it, too, so only ever by atomic accesses.
        Ok(unsafe { AtomicU16::from_ptr(at.0 as *mut u16) })
    }
}

impl GuestRam for Identity {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
        self.check(at, into.len())?;
        // SAFETY: mapped; `into` is the caller's own.
        unsafe { ptr::copy(at.0 as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
        self.check(at, from.len())?;
        // SAFETY: mapped, and memory that the driver has allocated for its rings and buffers.
        unsafe { ptr::copy(from.as_ptr(), at.0 as *mut u8, from.len()) };
        Ok(())
    }

    fn load_u16(&self, at: Gpa, order: Ordering) -> Result<u16, RamError> {
        Ok(u16::from_le(self.word(at)?.load(order)))
    }

    fn store_u16(&self, at: Gpa, value: u16, order: Ordering) -> Result<(), RamError> {
        self.word(at)?.store(value.to_le(), order);
        Ok(())
    }
}
