// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PCI configuration space by its two ports (configuration mechanism 1), bus 0.

use crate::ports::{inl, outl, outw};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Devices on a bus.
const DEVICES: u32 = 32;
const COMMAND: u32 = 0x04;
const BARS: u32 = 0x10;
const CAPABILITIES: u32 = 0x34;
/// Memory space, bus master.
const COMMAND_BITS: u16 = 6;
/// A base address register of 64 bits.
const BAR_TYPE: u32 = 6;
const BAR_64: u32 = 4;

/// A function 0 of a device on bus 0.
#[derive(Clone, Copy)]
pub(crate) struct PciDevice {
    /// Its number on the bus.
    pub(crate) number: u32,
}

/// A capability, at an offset in configuration space.
pub(crate) struct Capability {
    device: PciDevice,
    at: u32,
}

impl PciDevice {
    /// The first device with this vendor (low half) and device id (high half).
    pub(crate) fn find(id: u32) -> Option<Self> {
        (0..DEVICES).map(|number| Self { number }).find(|device| device.read(0) == id)
    }

    /// 32 bits, shifted so that the byte at `offset` comes first.
    fn read(self, offset: u32) -> u32 {
        // SAFETY: a read of configuration space moves no memory.
        unsafe {
            outl(ADDRESS_PORT, ENABLE | self.number << 11 | offset & 0xfc);
            inl(DATA_PORT) >> (8 * (offset & 3))
        }
    }

    /// Lets the device be accessed and access memory. By 16 bits, as Linux does: alioth ignores 32.
    pub(crate) fn enable(self) {
        let command = self.read(COMMAND) as u16 | COMMAND_BITS;
        // SAFETY: a device in reset accesses no memory.
        unsafe {
            outl(ADDRESS_PORT, ENABLE | self.number << 11 | COMMAND);
            outw(DATA_PORT, command);
        }
    }

    /// The address of a memory BAR.
    pub(crate) fn bar(self, index: u32) -> u64 {
        let low = self.read(BARS + 4 * index);
        let high = if low & BAR_TYPE == BAR_64 { self.read(BARS + 4 * (index + 1)) } else { 0 };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }

    /// Its capabilities.
    pub(crate) fn capabilities(self) -> impl Iterator<Item = Capability> {
        // Each is four bytes at least, so that a list longer than this has a circle.
        let mut left = 64;
        let mut at = self.read(CAPABILITIES) & 0xfc;
        core::iter::from_fn(move || {
            let found = (at != 0 && left > 0).then_some(Capability { device: self, at })?;
            left -= 1;
            at = self.read(at + 1) & 0xfc;
            Some(found)
        })
    }
}

impl Capability {
    /// The byte at `offset`.
    pub(crate) fn byte(&self, offset: u32) -> u8 {
        self.device.read(self.at + offset) as u8
    }

    /// The 32 bits at `offset`, a multiple of four.
    pub(crate) fn word(&self, offset: u32) -> u32 {
        self.device.read(self.at + offset)
    }
}
