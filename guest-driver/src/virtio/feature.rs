// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device-independent feature bits, as masks (virtio 1.2, 6).

/// A descriptor may refer to a table of descriptors (2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Both sides say from which index on they want to be notified (2.7.7, 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// The device follows virtio 1.x.
pub const VERSION_1: u64 = 1 << 32;
/// The device's memory accesses are limited or translated by the platform.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// The packed ring layout.
pub const RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;
