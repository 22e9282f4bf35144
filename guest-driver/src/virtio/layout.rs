// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the parts of a split ring lie in guest memory, and what a descriptor looks like there
//! (virtio 1.2, 2.7).

use crate::ram::Gpa;

/// The largest queue size of a split ring (virtio 1.2, 2.7).
pub const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// Alignment of the descriptor table in bytes; that of the available ring is 2.
const DESC_ALIGN: u64 = 16;
const AVAIL_ALIGN: u64 = 2;
const USED_ALIGN: u64 = 4;
/// `flags` and `idx` ahead of either ring's entries, in bytes.
const RING_HEADER: u64 = 4;
const EVENT_BYTES: u64 = 2;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

/// Why a ring's place in memory will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The size is not a power of two from 1 to [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// A part does not start at a multiple of its alignment.
    #[error("the {part} at {at} is not aligned to {align} bytes")]
    Alignment {
        /// Which part.
        part: &'static str,
        /// Where it was to start.
        at: Gpa,
        /// The alignment it needs, in bytes.
        align: u64,
    },
    /// A part would reach past 2^64.
    #[error("the {part} at {at} does not fit below 2^64")]
    TooHigh {
        /// Which part.
        part: &'static str,
        /// Where it was to start.
        at: Gpa,
    },
}

/// Where a split ring's three parts lie (virtio 1.2, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    size: u16,
    desc: Gpa,
    avail: Gpa,
    used: Gpa,
}

impl RingLayout {
    /// A ring of `size` descriptors with its parts at the given addresses. Whether those are
    /// guest memory shows when the ring is used.
    ///
    /// # Errors
    /// [`LayoutError`] where size, alignment or address is not a split ring's.
    pub fn new(size: u16, desc: Gpa, avail: Gpa, used: Gpa) -> Result<Self, LayoutError> {
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(LayoutError::Size(size));
        }
        for (part, at, align, bytes) in [
            ("descriptor table", desc, DESC_ALIGN, Self::desc_bytes(size)),
            ("available ring", avail, AVAIL_ALIGN, Self::avail_bytes(size)),
            ("used ring", used, USED_ALIGN, Self::used_bytes(size)),
        ] {
            if !at.0.is_multiple_of(align) {
                return Err(LayoutError::Alignment { part, at, align });
            }
            if at.checked_add(bytes).is_none() {
                return Err(LayoutError::TooHigh { part, at });
            }
        }
        Ok(Self { size, desc, avail, used })
    }

    /// A ring of `size` descriptors with its parts one behind the other from `base`, which takes
    /// [`RingLayout::contiguous_bytes`].
    ///
    /// # Errors
    /// See [`RingLayout::new`].
    pub fn contiguous(base: Gpa, size: u16) -> Result<Self, LayoutError> {
        if base.checked_add(Self::contiguous_bytes(size)).is_none() {
            return Err(LayoutError::TooHigh { part: "ring", at: base });
        }
        let avail = Gpa(base.0 + Self::desc_bytes(size));
        let used = Gpa((avail.0 + Self::avail_bytes(size)).next_multiple_of(USED_ALIGN));
        Self::new(size, base, avail, used)
    }

    /// What a ring of `size` descriptors takes in one piece, in bytes.
    pub const fn contiguous_bytes(size: u16) -> u64 {
        (Self::desc_bytes(size) + Self::avail_bytes(size)).next_multiple_of(USED_ALIGN)
            + Self::used_bytes(size)
    }

    const fn desc_bytes(size: u16) -> u64 {
        Descriptor::BYTES as u64 * size as u64
    }

    const fn avail_bytes(size: u16) -> u64 {
        RING_HEADER + AVAIL_ENTRY * size as u64 + EVENT_BYTES
    }

    const fn used_bytes(size: u16) -> u64 {
        RING_HEADER + USED_ENTRY * size as u64 + EVENT_BYTES
    }

    /// The number of descriptors, a power of two.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table.
    pub const fn desc(&self) -> Gpa {
        self.desc
    }

    /// The available ring.
    pub const fn avail(&self) -> Gpa {
        self.avail
    }

    /// The used ring.
    pub const fn used(&self) -> Gpa {
        self.used
    }

    /// The descriptor at `index`, taken modulo the size.
    pub const fn desc_entry(&self, index: u16) -> Gpa {
        Gpa(self.desc.0 + Descriptor::BYTES as u64 * self.slot(index))
    }

    /// The driver's flags.
    pub const fn avail_flags(&self) -> Gpa {
        self.avail
    }

    /// The index up to which the driver has made chains available.
    pub const fn avail_idx(&self) -> Gpa {
        Gpa(self.avail.0 + 2)
    }

    /// The available ring's entry for the running index `index`.
    pub const fn avail_entry(&self, index: u16) -> Gpa {
        Gpa(self.avail.0 + RING_HEADER + AVAIL_ENTRY * self.slot(index))
    }

    /// Where the driver says from which used index on it wants to be notified (2.7.7).
    pub const fn used_event(&self) -> Gpa {
        Gpa(self.avail.0 + RING_HEADER + AVAIL_ENTRY * self.size as u64)
    }

    /// The device's flags.
    pub const fn used_flags(&self) -> Gpa {
        self.used
    }

    /// The index up to which the device has used chains.
    pub const fn used_idx(&self) -> Gpa {
        Gpa(self.used.0 + 2)
    }

    /// The used ring's entry for the running index `index`.
    pub const fn used_entry(&self, index: u16) -> Gpa {
        Gpa(self.used.0 + RING_HEADER + USED_ENTRY * self.slot(index))
    }

    /// Where the device says from which available index on it wants to be notified (2.7.10).
    pub const fn avail_event(&self) -> Gpa {
        Gpa(self.used.0 + RING_HEADER + USED_ENTRY * self.size as u64)
    }

    const fn slot(&self, index: u16) -> u64 {
        (index % self.size) as u64
    }
}

/// A descriptor (virtio 1.2, 2.7.5). Nothing in it is checked: a driver may write what it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// What it refers to.
    pub addr: Gpa,
    /// The length in bytes.
    pub len: u32,
    /// A mask of [`Descriptor::NEXT`], [`Descriptor::WRITE`] and [`Descriptor::INDIRECT`].
    pub flags: u16,
    /// The index of the next descriptor of the chain, with [`Descriptor::NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// The length in memory, in bytes.
    pub const BYTES: usize = 16;
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device may write; without it, it may read.
    pub const WRITE: u16 = 2;
    /// The descriptor refers to a table of descriptors.
    pub const INDIRECT: u16 = 4;

    /// A device-writable descriptor that ends its chain.
    pub const fn writable(addr: Gpa, len: u32) -> Self {
        Self { addr, len, flags: Self::WRITE, next: 0 }
    }

    /// A device-readable descriptor that ends its chain.
    pub const fn readable(addr: Gpa, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// A descriptor that refers to a table of `len` bytes.
    pub const fn indirect(table: Gpa, len: u32) -> Self {
        Self { addr: table, len, flags: Self::INDIRECT, next: 0 }
    }

    /// The same with a successor.
    pub const fn chained_to(self, next: u16) -> Self {
        Self { flags: self.flags | Self::NEXT, next, ..self }
    }

    /// As it lies in memory, little-endian.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.addr.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// From memory.
    pub const fn from_bytes(b: [u8; Self::BYTES]) -> Self {
        Self {
            addr: Gpa(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])),
            len: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            flags: u16::from_le_bytes([b[12], b[13]]),
            next: u16::from_le_bytes([b[14], b[15]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_without_overlap() {
        for size in [1, 2, 128, MAX_QUEUE_SIZE] {
            let ring = RingLayout::contiguous(Gpa(0x1000), size).unwrap();
            assert!(ring.avail().0 >= ring.desc().0 + 16 * u64::from(size));
            assert!(ring.used().0 >= ring.used_event().0 + 2);
            let end = ring.avail_event().0 + 2;
            assert_eq!(end, 0x1000 + RingLayout::contiguous_bytes(size));
        }
    }

    #[test]
    fn what_is_no_split_ring_is_refused() {
        assert_eq!(RingLayout::contiguous(Gpa(0), 3), Err(LayoutError::Size(3)));
        assert_eq!(RingLayout::contiguous(Gpa(0), 0), Err(LayoutError::Size(0)));
        assert!(matches!(
            RingLayout::contiguous(Gpa(8), 4),
            Err(LayoutError::Alignment { part: "descriptor table", .. })
        ));
        assert!(matches!(
            RingLayout::new(4, Gpa(0), Gpa(0x100), Gpa(0x202)),
            Err(LayoutError::Alignment { part: "used ring", .. })
        ));
        assert!(matches!(
            RingLayout::contiguous(Gpa(u64::MAX - 15), 4),
            Err(LayoutError::TooHigh { .. })
        ));
    }

    #[test]
    fn entries_wrap_at_the_size() {
        let ring = RingLayout::contiguous(Gpa(0), 4).unwrap();
        assert_eq!(ring.avail_entry(5), ring.avail_entry(1));
        assert_eq!(ring.used_entry(u16::MAX), ring.used_entry(3));
    }

    #[test]
    fn a_descriptor_survives_memory() {
        let descriptor = Descriptor {
            addr: Gpa(0x0102_0304_0506_0708),
            len: 0x090a_0b0c,
            flags: 0x0d0e,
            next: 0x0f10,
        };
        assert_eq!(descriptor.to_bytes()[0], 8);
        assert_eq!(Descriptor::from_bytes(descriptor.to_bytes()), descriptor);
    }
}
