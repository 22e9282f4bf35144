// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the model knows of a page frame (`struct page`), in 16 bytes.

use core::sync::atomic::AtomicU32 as PlainU32;

use super::geometry::Pfn;
use crate::sync::{AtomicU32, Ordering};

/// No frame.
const NONE: u32 = u32::MAX;

/// What a frame is. Only the first frame of a block says so; the others are tails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameState {
    /// Not memory, or offline.
    Absent,
    /// Any but the first frame of a block.
    Tail,
    /// The first frame of a free block (`PageBuddy`).
    Buddy {
        /// Its size.
        order: u8,
        /// Nothing of it was touched since it was last reported (`PageReported`).
        reported: bool,
    },
    /// On a per-CPU list: free to its CPU, in flight to the others.
    Pcp {
        /// Its size.
        order: u8,
    },
    /// Pulled out of the free lists by the reporter: reference count zero, and not a buddy.
    Held {
        /// Its size.
        order: u8,
    },
    /// In use.
    Allocated {
        /// Its size.
        order: u8,
        /// Whether its contents can be moved elsewhere.
        movable: bool,
    },
}

const TAIL: u32 = 1;
const BUDDY: u32 = 2;
const PCP: u32 = 3;
const HELD: u32 = 4;
const ALLOCATED: u32 = 5;
const KIND: u32 = 0xf;
const ORDER_SHIFT: u32 = 4;
const FLAG: u32 = 1 << 12;

impl FrameState {
    fn pack(self) -> u32 {
        let with = |kind: u32, order: u8, flag: bool| {
            kind | u32::from(order) << ORDER_SHIFT | if flag { FLAG } else { 0 }
        };
        match self {
            Self::Absent => 0,
            Self::Tail => TAIL,
            Self::Buddy { order, reported } => with(BUDDY, order, reported),
            Self::Pcp { order } => with(PCP, order, false),
            Self::Held { order } => with(HELD, order, false),
            Self::Allocated { order, movable } => with(ALLOCATED, order, movable),
        }
    }

    fn unpack(bits: u32) -> Self {
        let [_, order, ..] = (bits << (8 - ORDER_SHIFT)).to_le_bytes();
        let flag = bits & FLAG != 0;
        let order = order & 0x1f;
        match bits & KIND {
            TAIL => Self::Tail,
            BUDDY => Self::Buddy { order, reported: flag },
            PCP => Self::Pcp { order },
            HELD => Self::Held { order },
            ALLOCATED => Self::Allocated { order, movable: flag },
            _ => Self::Absent,
        }
    }

    /// The order of a free block's first frame.
    pub fn buddy_order(self) -> Option<u8> {
        match self {
            Self::Buddy { order, .. } => Some(order),
            _ => None,
        }
    }
}

/// A page frame.
#[derive(Debug)]
pub struct Frame {
    /// Read without a lock, too.
    state: AtomicU32,
    /// Neighbours on the free list; touched under the zone's lock only.
    next: PlainU32,
    prev: PlainU32,
    /// Its user, in that user's terms; meaningless while it is free.
    owner: PlainU32,
}

impl Frame {
    pub(super) fn absent() -> Self {
        Self {
            state: AtomicU32::new(FrameState::Absent.pack()),
            next: PlainU32::new(NONE),
            prev: PlainU32::new(NONE),
            owner: PlainU32::new(NONE),
        }
    }

    /// What it is.
    pub fn state(&self) -> FrameState {
        FrameState::unpack(self.state.load(Ordering::Relaxed))
    }

    pub(super) fn set_state(&self, state: FrameState) {
        self.state.store(state.pack(), Ordering::Relaxed);
    }

    /// Its user, if it is allocated and has one set.
    pub fn owner(&self) -> Option<u32> {
        Some(self.owner.load(Ordering::Relaxed)).filter(|&owner| owner != NONE)
    }

    pub(super) fn set_owner(&self, owner: Option<u32>) {
        self.owner.store(owner.unwrap_or(NONE), Ordering::Relaxed);
    }

    pub(super) fn next(&self) -> Option<Pfn> {
        Some(self.next.load(Ordering::Relaxed)).filter(|&pfn| pfn != NONE).map(Pfn)
    }

    pub(super) fn prev(&self) -> Option<Pfn> {
        Some(self.prev.load(Ordering::Relaxed)).filter(|&pfn| pfn != NONE).map(Pfn)
    }

    pub(super) fn set_next(&self, pfn: Option<Pfn>) {
        self.next.store(pfn.map_or(NONE, |pfn| pfn.0), Ordering::Relaxed);
    }

    pub(super) fn set_prev(&self, pfn: Option<Pfn>) {
        self.prev.store(pfn.map_or(NONE, |pfn| pfn.0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_packing() {
        let mut states = vec![FrameState::Absent, FrameState::Tail];
        for order in 0..=10 {
            for flag in [false, true] {
                states.push(FrameState::Buddy { order, reported: flag });
                states.push(FrameState::Allocated { order, movable: flag });
            }
            states.push(FrameState::Pcp { order });
            states.push(FrameState::Held { order });
        }
        for state in states {
            assert_eq!(FrameState::unpack(state.pack()), state);
        }
    }

    #[cfg(not(feature = "shuttle"))]
    #[test]
    fn a_frame_is_small() {
        assert!(size_of::<Frame>() <= 24);
    }
}
