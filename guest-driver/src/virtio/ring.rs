// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's half of a split ring (virtio 1.2, 2.7).
//!
//! The normal way is [`DriverRing::add_chain`], [`DriverRing::publish`],
//! [`DriverRing::kick_needed`] and [`DriverRing::pop_used`]. Beside it everything can be written
//! raw (`raw`), so that a test can be a hostile driver: [`DriverRing::claim`] keeps the bookkeeping for
//! descriptors whose contents [`DriverRing::write_descriptor`] invents.

use super::layout::{Descriptor, RingLayout};
use crate::ram::{Gpa, GuestRam, RamError};
use alloc::{vec, vec::Vec};
use core::sync::atomic::{Ordering, fence};

mod raw;

#[cfg(test)]
pub(super) mod naive_device;
#[cfg(test)]
mod tests;

/// `VIRTQ_USED_F_NO_NOTIFY`: the device asks not to be kicked (virtio 1.2, 2.7.10).
const USED_F_NO_NOTIFY: u16 = 1;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver asks not to be notified (virtio 1.2, 2.7.7).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_ELEM_BYTES: usize = 8;

/// Why the ring cannot do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Too few descriptors are free.
    #[error("{need} descriptors needed, {free} are free")]
    Full {
        /// How many the chain needs.
        need: usize,
        /// How many there are.
        free: u16,
    },
    /// A chain has at least one descriptor.
    #[error("a chain needs at least one descriptor")]
    EmptyChain,
    /// An indirect table's length does not fit a descriptor.
    #[error("an indirect table of {0} descriptors is too long for a descriptor to refer to")]
    TableTooLong(usize),
    /// The device returned a chain that it was not given, or returned it twice.
    #[error("the device returned id {id} with length {len}, which heads no chain of the driver's")]
    UnknownId {
        /// The id in the used ring.
        id: u32,
        /// The length in the used ring, in bytes.
        len: u32,
    },
    /// The ring does not lie in guest memory.
    #[error("the ring's memory cannot be reached")]
    Ram(#[from] RamError),
}

/// A piece of guest memory that a chain offers to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its first byte.
    pub addr: Gpa,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device may write it; if not, it may read it.
    pub writable: bool,
}

impl Buffer {
    /// A device-writable buffer of `len` bytes, which is what free pages are reported as.
    pub const fn writable(addr: Gpa, len: u32) -> Self {
        Self { addr, len, writable: true }
    }

    /// A device-readable buffer of `len` bytes.
    pub const fn readable(addr: Gpa, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    const fn descriptor(self) -> Descriptor {
        if self.writable {
            Descriptor::writable(self.addr, self.len)
        } else {
            Descriptor::readable(self.addr, self.len)
        }
    }
}

/// A chain that the device has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor, as [`DriverRing::add_chain`] returned it.
    pub id: u16,
    /// How many bytes the device says it wrote.
    pub len: u32,
}

/// The driver's half of a split ring in guest memory `M`.
///
/// Chains become visible to the device with [`DriverRing::publish`], not before.
///
/// ```
/// use core::cell::RefCell;
/// use core::sync::atomic::Ordering;
/// use guest_driver::ram::{Gpa, GuestRam, RamError};
/// use guest_driver::virtio::layout::RingLayout;
/// use guest_driver::virtio::ring::{Buffer, DriverRing};
///
/// /// Guest memory for one thread; an access beyond its end panics.
/// struct Ram(RefCell<Vec<u8>>);
///
/// impl GuestRam for Ram {
///     fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
///         let start = at.0 as usize;
///         into.copy_from_slice(&self.0.borrow()[start..start + into.len()]);
///         Ok(())
///     }
///     fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
///         let start = at.0 as usize;
///         self.0.borrow_mut()[start..start + from.len()].copy_from_slice(from);
///         Ok(())
///     }
///     fn load_u16(&self, at: Gpa, _: Ordering) -> Result<u16, RamError> {
///         let mut bytes = [0; 2];
///         self.read(at, &mut bytes)?;
///         Ok(u16::from_le_bytes(bytes))
///     }
///     fn store_u16(&self, at: Gpa, value: u16, _: Ordering) -> Result<(), RamError> {
///         self.write(at, &value.to_le_bytes())
///     }
/// }
///
/// let ram = Ram(RefCell::new(vec![0; 1 << 16]));
/// let layout = RingLayout::contiguous(Gpa(0x1000), 8).expect("it fits");
/// let mut ring = DriverRing::new(&ram, layout, false)?;
///
/// // A free page of the guest, for the device to discard.
/// ring.add_chain(&[Buffer::writable(Gpa(0x4000), 4096)])?;
/// ring.publish()?;
/// assert!(ring.kick_needed()?);
/// assert_eq!(ring.pop_used()?, None, "no device has taken it");
/// # Ok::<(), guest_driver::virtio::ring::RingError>(())
/// ```
#[derive(Debug)]
pub struct DriverRing<M> {
    ram: M,
    layout: RingLayout,
    event_idx: bool,
    /// Each descriptor's successor, in the free list or in the chain that it is claimed for. The
    /// copy in guest memory is never read back: it may say anything.
    links: Vec<u16>,
    free_head: u16,
    free: u16,
    /// By head: how many descriptors its chain holds, 0 where it heads none.
    chain_len: Vec<u16>,
    next_avail: u16,
    published: u16,
    kick_checked: u16,
    next_used: u16,
    wants_used: bool,
}

impl<M: GuestRam> DriverRing<M> {
    /// An empty ring; its memory is cleared. `event_idx` says whether
    /// [`super::feature::EVENT_IDX`] was negotiated.
    ///
    /// # Errors
    /// [`RingError::Ram`] where the ring does not lie in guest memory.
    pub fn new(ram: M, layout: RingLayout, event_idx: bool) -> Result<Self, RingError> {
        let size = layout.size();
        for index in 0..size {
            ram.write(layout.desc_entry(index), &[0; Descriptor::BYTES])?;
            ram.store_u16(layout.avail_entry(index), 0, Ordering::Relaxed)?;
            ram.write(layout.used_entry(index), &[0; USED_ELEM_BYTES])?;
        }
        for at in [
            layout.avail_flags(),
            layout.avail_idx(),
            layout.used_event(),
            layout.used_flags(),
            layout.used_idx(),
            layout.avail_event(),
        ] {
            ram.store_u16(at, 0, Ordering::Relaxed)?;
        }
        // The ring reaches the device with a message, but not every message is a barrier.
        fence(Ordering::SeqCst);
        Ok(Self {
            ram,
            layout,
            event_idx,
            links: (1..=size).collect(),
            free_head: 0,
            free: size,
            chain_len: vec![0; usize::from(size)],
            next_avail: 0,
            published: 0,
            kick_checked: 0,
            next_used: 0,
            wants_used: true,
        })
    }

    /// Goes on in `ram`, a copy of the memory that the ring lies in, after the guest has migrated.
    pub fn move_to(&mut self, ram: M) {
        self.ram = ram;
    }

    /// Where the ring lies.
    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// Whether both sides give event indices.
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// How many descriptors are free.
    pub fn free_descriptors(&self) -> u16 {
        self.free
    }

    /// The running index up to which chains are visible to the device.
    pub fn published(&self) -> u16 {
        self.published
    }

    /// The running index of the next chain that [`DriverRing::pop_used`] will take.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The running index up to which the device has returned chains.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn used_idx(&self) -> Result<u16, RingError> {
        Ok(self.ram.load_u16(self.layout.used_idx(), Ordering::Acquire)?)
    }

    /// Puts `buffers` into one chain, one descriptor each, and returns its head.
    ///
    /// # Errors
    /// [`RingError::EmptyChain`], [`RingError::Full`], [`RingError::Ram`]; nothing was added then.
    pub fn add_chain(&mut self, buffers: &[Buffer]) -> Result<u16, RingError> {
        self.check_room(buffers.len())?;
        let mut index = self.free_head;
        for (left, buffer) in (0..buffers.len()).rev().zip(buffers) {
            let next = self.links[usize::from(index)];
            let descriptor = match left {
                0 => buffer.descriptor(),
                _ => buffer.descriptor().chained_to(next),
            };
            self.write_descriptor(index, descriptor)?;
            index = next;
        }
        self.write_avail_entry(self.next_avail, self.free_head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.take_free(buffers.len())
    }

    /// Puts `buffers` into a table at `table`, which is the caller's to keep until the chain comes
    /// back and takes [`Descriptor::BYTES`] a buffer, and refers to it with one descriptor.
    ///
    /// # Errors
    /// [`RingError::EmptyChain`], [`RingError::TableTooLong`], [`RingError::Full`],
    /// [`RingError::Ram`]; nothing was added then.
    pub fn add_indirect(&mut self, table: Gpa, buffers: &[Buffer]) -> Result<u16, RingError> {
        if buffers.is_empty() {
            return Err(RingError::EmptyChain);
        }
        self.check_room(1)?;
        let too_long = RingError::TableTooLong(buffers.len());
        let bytes = u32::try_from(buffers.len() * Descriptor::BYTES).map_err(|_| too_long)?;
        let last = u16::try_from(buffers.len() - 1).map_err(|_| too_long)?;
        for (index, buffer) in (0..=last).zip(buffers) {
            let descriptor = match index {
                index if index == last => buffer.descriptor(),
                _ => buffer.descriptor().chained_to(index + 1),
            };
            self.write_table_entry(table, index, descriptor)?;
        }
        self.write_descriptor(self.free_head, Descriptor::indirect(table, bytes))?;
        self.write_avail_entry(self.next_avail, self.free_head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.take_free(1)
    }

    /// Makes every chain added so far visible to the device.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn publish(&mut self) -> Result<(), RingError> {
        // Release: descriptors and entries before the index (virtio 1.2, 2.7.13.3).
        self.ram.store_u16(self.layout.avail_idx(), self.next_avail, Ordering::Release)?;
        self.published = self.next_avail;
        Ok(())
    }

    /// Whether the device wants to be kicked for what was published since the last call
    /// (virtio 1.2, 2.7.10).
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn kick_needed(&mut self) -> Result<bool, RingError> {
        // The index has to be out before the device's wish is read, or both sides may conclude
        // that the other will look (virtio 1.2, 2.7.13.4.1).
        fence(Ordering::SeqCst);
        let since = core::mem::replace(&mut self.kick_checked, self.published);
        if !self.event_idx {
            let flags = self.ram.load_u16(self.layout.used_flags(), Ordering::Relaxed)?;
            return Ok(flags & USED_F_NO_NOTIFY == 0 && since != self.published);
        }
        let event = self.ram.load_u16(self.layout.avail_event(), Ordering::Relaxed)?;
        Ok(event_passed(event, since, self.published))
    }

    /// Takes the next chain that the device has returned and frees its descriptors.
    ///
    /// While notifications are wanted, `None` also means that the next chain to come back will be
    /// notified: a caller may wait for that without losing it.
    ///
    /// # Errors
    /// [`RingError::UnknownId`] for a chain that the driver never gave or that came back before;
    /// the entry is passed over. [`RingError::Ram`].
    pub fn pop_used(&mut self) -> Result<Option<Used>, RingError> {
        if self.used_idx()? == self.next_used {
            return Ok(None);
        }
        let mut elem = [0; USED_ELEM_BYTES];
        self.ram.read(self.layout.used_entry(self.next_used), &mut elem)?;
        self.next_used = self.next_used.wrapping_add(1);
        if self.event_idx && self.wants_used {
            self.set_used_event(self.next_used)?;
        }
        let id = u32::from_le_bytes([elem[0], elem[1], elem[2], elem[3]]);
        let len = u32::from_le_bytes([elem[4], elem[5], elem[6], elem[7]]);
        let head = u16::try_from(id)
            .ok()
            .filter(|head| self.chain_len.get(usize::from(*head)).is_some_and(|len| *len > 0))
            .ok_or(RingError::UnknownId { id, len })?;
        self.release(head);
        Ok(Some(Used { id: head, len }))
    }

    /// Asks the device not to notify returned chains; it may do so all the same.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn suppress_used(&mut self) -> Result<(), RingError> {
        self.wants_used = false;
        if self.event_idx {
            // The index that the device reaches last.
            self.set_used_event(self.next_used.wrapping_sub(1))
        } else {
            self.set_avail_flags(AVAIL_F_NO_INTERRUPT)
        }
    }

    /// Asks the device to notify the next chain that it returns. Says whether one is back already,
    /// which it may not notify any more.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn request_used(&mut self) -> Result<bool, RingError> {
        self.wants_used = true;
        if self.event_idx {
            self.set_used_event(self.next_used)?;
        } else {
            self.set_avail_flags(0)?;
        }
        Ok(self.used_idx()? != self.next_used)
    }

    fn write_avail_entry(&self, index: u16, head: u16) -> Result<(), RingError> {
        Ok(self.ram.store_u16(self.layout.avail_entry(index), head, Ordering::Relaxed)?)
    }

    fn set_used_event(&self, index: u16) -> Result<(), RingError> {
        self.ram.store_u16(self.layout.used_event(), index, Ordering::Relaxed)?;
        // The wish has to be out before the used index is looked at again, or a chain returned in
        // between is neither seen nor notified.
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn set_avail_flags(&self, flags: u16) -> Result<(), RingError> {
        self.ram.store_u16(self.layout.avail_flags(), flags, Ordering::Relaxed)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn check_room(&self, need: usize) -> Result<(), RingError> {
        match need {
            0 => Err(RingError::EmptyChain),
            need if need > usize::from(self.free) => Err(RingError::Full { need, free: self.free }),
            _ => Ok(()),
        }
    }

    /// Turns the first `count` free descriptors into a chain and returns its head.
    fn take_free(&mut self, count: usize) -> Result<u16, RingError> {
        let full = RingError::Full { need: count, free: self.free };
        let count = u16::try_from(count).map_err(|_| full)?;
        let head = self.free_head;
        for _ in 0..count {
            self.free_head = self.links[usize::from(self.free_head)];
        }
        self.free -= count;
        self.chain_len[usize::from(head)] = count;
        Ok(head)
    }

    /// Gives the descriptors of the chain at `head` back to the free list.
    fn release(&mut self, head: u16) {
        let count = core::mem::take(&mut self.chain_len[usize::from(head)]);
        let mut last = head;
        for _ in 1..count {
            last = self.links[usize::from(last)];
        }
        self.links[usize::from(last)] = self.free_head;
        self.free_head = head;
        self.free += count;
    }
}

/// Whether going from index `since` to `to` passed the entry `event` (`vring_need_event` in Linux).
const fn event_passed(event: u16, since: u16, to: u16) -> bool {
    to.wrapping_sub(event).wrapping_sub(1) < to.wrapping_sub(since)
}
