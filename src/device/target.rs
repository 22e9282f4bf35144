// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much of a guest's memory the balloon may take.
//!
//! A target is what the guest goes without. Other tools (QEMU's monitor, libvirt, Proxmox) take a
//! number for what is left to the guest, and a target that takes everything ends the guest. So a
//! target leaves a reserve, unless the operator forces it.

use std::time::{Duration, Instant};

use super::config_space::{BALLOON_PAGE_SIZE, TargetError, pages};

/// The reserve is this part of the guest's memory,
const RESERVE_PART: u64 = 8;
/// and at least this many bytes, which a small Linux guest needs to go on,
const LEAST_RESERVE: u64 = 256 << 20;
/// but never more than this part of a guest with less than that.
const MOST_RESERVE_PART: u64 = 2;

/// Bytes that a target leaves to a guest with `memory_bytes` bytes, unless it is forced.
pub fn reserve_bytes(memory_bytes: u64) -> u64 {
    (memory_bytes / RESERVE_PART).max(LEAST_RESERVE).min(memory_bytes / MOST_RESERVE_PART)
}

/// The largest target, in bytes and whole pages, for a guest with `memory_bytes` bytes.
pub(crate) fn largest_target(memory_bytes: u64) -> u64 {
    let most = memory_bytes - reserve_bytes(memory_bytes);
    most - most % BALLOON_PAGE_SIZE
}

/// A target that takes more of the guest's memory than is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a balloon of {wanted} bytes leaves {left} of the guest's {memory} bytes, expected at least \
     {reserve}: take at most {largest} bytes, or force it",
    left = .memory.saturating_sub(*.wanted),
    reserve = reserve_bytes(*.memory),
    largest = largest_target(*.memory)
)]
pub(crate) struct TargetRefused {
    /// The target, in bytes.
    pub wanted: u64,
    /// The guest's memory, in bytes.
    pub memory: u64,
}

impl TargetRefused {
    /// Whether a guest with `memory` bytes can go without `wanted` bytes.
    ///
    /// # Errors
    /// [`TargetRefused`] if the reserve would not be left.
    pub(crate) fn check(wanted: u64, memory: u64) -> Result<(), Self> {
        if wanted > largest_target(memory) { Err(Self { wanted, memory }) } else { Ok(()) }
    }
}

/// The longest lease.
pub(crate) const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);

/// A target that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Pages of 4 KiB that it wants in the balloon.
    pub(super) pages: u32,
    forced: bool,
    /// When it is over.
    pub(crate) until: Instant,
}

impl Lease {
    /// A lease of a balloon of `bytes` until then; `forced` as in [`super::Balloon::set_target`].
    ///
    /// # Errors
    /// [`TargetError`].
    pub(crate) fn new(bytes: u64, forced: bool, until: Instant) -> Result<Self, TargetError> {
        Ok(Self { pages: pages(bytes)?, forced, until })
    }

    /// Bytes that it wants in the balloon.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.pages) * BALLOON_PAGE_SIZE
    }
}

/// What operators want in the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Bytes of the base target.
    pub base_bytes: u64,
    /// Whether that may leave less than the reserve.
    pub base_forced: bool,
    /// What lies over it.
    pub lease: Option<Lease>,
}

impl Target {
    /// Bytes that hold now.
    pub(crate) fn bytes(&self) -> u64 {
        self.lease.map_or(self.base_bytes, |lease| lease.bytes())
    }

    /// Whether those may leave less than the reserve.
    pub(crate) fn is_forced(&self) -> bool {
        self.lease.map_or(self.base_forced, |lease| lease.forced)
    }
}

/// Why a reclaim has to let go, whatever the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The daemon is shutting down.
    Shutdown,
    /// An operator has ended it.
    Interrupted,
}

/// What a reclaim wants in the balloon for a time, over the operator's target.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squeeze {
    /// A reclaim is in progress.
    pub(super) claimed: bool,
    /// Why it has to let go, if it has to.
    pub(super) stopped: Option<Stop>,
    /// Pages of 4 KiB that it wants in the balloon.
    pub(super) pages: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reserve_small_and_large_guest_expected_part() {
        for (memory, left) in [(0, 0), (64, 32), (512, 256), (1024, 256), (4096, 512)] {
            assert_eq!(reserve_bytes(memory * MIB), left * MIB, "{memory} MiB");
        }
    }

    #[test]
    fn check_whole_guest_refused_with_largest() {
        let refused = TargetRefused::check(512 * MIB, 512 * MIB).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("take at most 268435456 bytes, or force it"), "{text}");
        assert_eq!(TargetRefused::check(256 * MIB, 512 * MIB), Ok(()));
    }

    proptest! {
        #[test]
        fn largest_target_any_memory_leaves_reserve(memory: u64) {
            let largest = largest_target(memory);
            prop_assert!(largest.is_multiple_of(BALLOON_PAGE_SIZE));
            prop_assert!(memory - largest >= reserve_bytes(memory));
            prop_assert_eq!(TargetRefused::check(largest, memory), Ok(()));
            if let Some(more) = largest.checked_add(BALLOON_PAGE_SIZE) {
                prop_assert!(TargetRefused::check(more, memory).is_err());
            }
        }
    }
}
