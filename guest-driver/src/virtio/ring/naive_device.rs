// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's half in its most literal form, and a guest memory for it to work on.

use super::super::layout::{Descriptor, RingLayout};
use crate::ram::{Gpa, GuestRam, RamError};
use core::{
    cell::RefCell,
    ops::Range,
    sync::atomic::{AtomicU8, Ordering},
};
use std::{sync::Mutex, vec, vec::Vec};

/// Guest memory from address 0, one thread at a time.
pub(in crate::virtio) struct VecRam(RefCell<Vec<u8>>);

impl VecRam {
    pub(in crate::virtio) fn new(len: usize) -> Self {
        Self(RefCell::new(vec![0xa5; len]))
    }
}

fn locate(at: Gpa, len: usize, size: usize) -> Result<Range<usize>, RamError> {
    let error = RamError::OutOfRange { at, len };
    let start = usize::try_from(at.0).map_err(|_| error)?;
    let end = start.checked_add(len).filter(|end| *end <= size).ok_or(error)?;
    Ok(start..end)
}

fn check_even(at: Gpa) -> Result<(), RamError> {
    if at.0.is_multiple_of(2) { Ok(()) } else { Err(RamError::Misaligned { at, align: 2 }) }
}

impl GuestRam for VecRam {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
        let ram = self.0.borrow();
        into.copy_from_slice(&ram[locate(at, into.len(), ram.len())?]);
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
        let mut ram = self.0.borrow_mut();
        let place = locate(at, from.len(), ram.len())?;
        ram[place].copy_from_slice(from);
        Ok(())
    }

    fn load_u16(&self, at: Gpa, _: Ordering) -> Result<u16, RamError> {
        check_even(at)?;
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Gpa, value: u16, _: Ordering) -> Result<(), RamError> {
        check_even(at)?;
        self.write(at, &value.to_le_bytes())
    }
}

/// The same for two threads: byte-wise atomic, and a lock makes two bytes one value.
pub(in crate::virtio) struct SharedRam {
    bytes: Vec<AtomicU8>,
    words: Mutex<()>,
}

impl SharedRam {
    pub(in crate::virtio) fn new(len: usize) -> Self {
        Self { bytes: (0..len).map(|_| AtomicU8::new(0)).collect(), words: Mutex::new(()) }
    }
}

impl GuestRam for SharedRam {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
        let place = locate(at, into.len(), self.bytes.len())?;
        for (slot, byte) in into.iter_mut().zip(&self.bytes[place]) {
            *slot = byte.load(Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
        let place = locate(at, from.len(), self.bytes.len())?;
        for (byte, value) in self.bytes[place].iter().zip(from) {
            byte.store(*value, Ordering::Relaxed);
        }
        Ok(())
    }

    fn load_u16(&self, at: Gpa, _: Ordering) -> Result<u16, RamError> {
        let _guard = self.words.lock().unwrap();
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Gpa, value: u16, _: Ordering) -> Result<(), RamError> {
        let _guard = self.words.lock().unwrap();
        self.write(at, &value.to_le_bytes())
    }
}

/// Follows the specification word by word, one chain at a time.
pub(in crate::virtio) struct NaiveDevice<'a, M> {
    pub(in crate::virtio) ram: &'a M,
    pub(in crate::virtio) layout: RingLayout,
    pub(in crate::virtio) event_idx: bool,
    pub(in crate::virtio) next_avail: u16,
    pub(in crate::virtio) next_used: u16,
}

impl<'a, M: GuestRam> NaiveDevice<'a, M> {
    pub(in crate::virtio) fn new(ram: &'a M, layout: RingLayout, event_idx: bool) -> Self {
        Self { ram, layout, event_idx, next_avail: 0, next_used: 0 }
    }

    /// The next chain's head and its descriptors, indirect tables resolved.
    pub(in crate::virtio) fn take(&mut self) -> Option<(u16, Vec<Descriptor>)> {
        let avail = self.ram.load_u16(self.layout.avail_idx(), Ordering::Acquire).unwrap();
        if avail == self.next_avail {
            return None;
        }
        let entry = self.layout.avail_entry(self.next_avail);
        let head = self.ram.load_u16(entry, Ordering::Relaxed).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        let mut chain = Vec::new();
        let (mut table, mut index) = (self.layout.desc(), head);
        loop {
            let mut bytes = [0; Descriptor::BYTES];
            self.ram.read(Gpa(table.0 + 16 * u64::from(index)), &mut bytes).unwrap();
            let descriptor = Descriptor::from_bytes(bytes);
            if descriptor.flags & Descriptor::INDIRECT != 0 {
                (table, index) = (descriptor.addr, 0);
                continue;
            }
            chain.push(descriptor);
            if descriptor.flags & Descriptor::NEXT == 0 {
                return Some((head, chain));
            }
            index = descriptor.next;
        }
    }

    /// Returns a chain; whether the driver must be notified.
    pub(in crate::virtio) fn give_back(&mut self, id: u32, len: u32) -> bool {
        let at = self.layout.used_entry(self.next_used);
        self.ram.write(at, &id.to_le_bytes()).unwrap();
        self.ram.write(Gpa(at.0 + 4), &len.to_le_bytes()).unwrap();
        let before = self.next_used;
        self.next_used = self.next_used.wrapping_add(1);
        self.ram.store_u16(self.layout.used_idx(), self.next_used, Ordering::Release).unwrap();
        core::sync::atomic::fence(Ordering::SeqCst);
        if self.event_idx {
            // "used_event" is the index whose use must be notified: one chain at a time, so it
            // is this one or not.
            before == self.ram.load_u16(self.layout.used_event(), Ordering::Relaxed).unwrap()
        } else {
            self.ram.load_u16(self.layout.avail_flags(), Ordering::Relaxed).unwrap() & 1 == 0
        }
    }

    /// Says from which available index on the device wants to be kicked.
    pub(in crate::virtio) fn ask_for_kick_at(&self, index: u16) {
        self.ram.store_u16(self.layout.avail_event(), index, Ordering::Relaxed).unwrap();
    }
}
