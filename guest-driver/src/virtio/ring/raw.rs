// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ring written raw, for a driver that is hostile on purpose.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{DriverRing, RingError};
use crate::ram::{Gpa, GuestRam, RamError};
use crate::virtio::layout::Descriptor;

impl<M: GuestRam> DriverRing<M> {
    /// Takes `count` free descriptors for one chain without writing them, the head first. They are
    /// free again when that head comes back.
    ///
    /// # Errors
    /// [`RingError::EmptyChain`], [`RingError::Full`].
    pub fn claim(&mut self, count: usize) -> Result<Vec<u16>, RingError> {
        self.check_room(count)?;
        let mut index = self.free_head;
        let claimed = (0..count).map(|_| {
            let this = index;
            index = self.links[usize::from(this)];
            this
        });
        let claimed = claimed.collect();
        self.take_free(count)?;
        Ok(claimed)
    }

    /// Offers the chain at `head` to the device, whatever `head` is; visible with
    /// [`DriverRing::publish`].
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn offer(&mut self, head: u16) -> Result<(), RingError> {
        self.write_avail_entry(self.next_avail, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    /// Writes an entry of the descriptor table, `index` taken modulo the ring's size.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) -> Result<(), RingError> {
        Ok(self.ram.write(self.layout.desc_entry(index), &descriptor.to_bytes())?)
    }

    /// Reads an entry of the descriptor table, `index` taken modulo the ring's size.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn read_descriptor(&self, index: u16) -> Result<Descriptor, RingError> {
        let mut bytes = [0; Descriptor::BYTES];
        self.ram.read(self.layout.desc_entry(index), &mut bytes)?;
        Ok(Descriptor::from_bytes(bytes))
    }

    /// Writes entry `index` of an indirect table.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn write_table_entry(
        &self,
        table: Gpa,
        index: u16,
        descriptor: Descriptor,
    ) -> Result<(), RingError> {
        let bytes = descriptor.to_bytes();
        let offset = u64::from(index) * bytes.len() as u64;
        let at = table
            .checked_add(offset)
            .ok_or(RamError::OutOfRange { at: table, len: bytes.len() })?;
        Ok(self.ram.write(at, &bytes)?)
    }

    /// Stores the available index raw, for a driver that lies about how much it has published.
    /// What [`DriverRing::publish`] stores is not affected.
    ///
    /// # Errors
    /// [`RingError::Ram`].
    pub fn store_avail_idx(&self, index: u16) -> Result<(), RingError> {
        Ok(self.ram.store_u16(self.layout.avail_idx(), index, Ordering::Release)?)
    }
}
