// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a step is told.

use std::time::Duration;

/// The host and its guests at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The moment, since any fixed one; never smaller than in the step before.
    pub now: Duration,
    /// The host.
    pub host: HostSeen,
    /// The guests, each with another name.
    pub guests: Vec<GuestSeen>,
}

/// The memory that the guests share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSeen {
    /// Bytes in all: the host's, or the limit of its control group.
    pub total_bytes: u64,
    /// Bytes that could be had without swapping (`MemAvailable`).
    pub available_bytes: u64,
    /// Tasks stall for memory (pressure stall information): the host lacks memory already.
    pub stalls: bool,
}

/// One guest, as its daemon says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestSeen {
    /// The VM's name, under which the policy remembers the guest.
    pub name: String,
    /// Bytes of memory that the guest has without a balloon; `None` without a VMM.
    pub memory_bytes: Option<u64>,
    /// Bytes in the balloon that its operator wants anyway (the base target).
    pub base_bytes: u64,
    /// Bytes that are wanted in the balloon now, by a lease or by the base target.
    pub target_bytes: u64,
    /// Bytes that the driver says are in it; `None` if it has not said so.
    pub actual_bytes: Option<u64>,
    /// Bytes of the guest's memory that the host holds; `None` if the kernel did not say.
    pub resident_bytes: Option<u64>,
    /// Whether its driver takes memory out of the balloon before the guest's OOM killer runs
    /// (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
    pub deflates_on_oom: bool,
    /// The last statistics; `None` if there are none.
    pub sample: Option<Sample>,
}

/// What a guest says of its memory; nothing of it is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// How long ago it came.
    pub age: Duration,
    /// Bytes of memory in all, without those in the balloon.
    pub total_bytes: u64,
    /// Bytes that the guest could have without swapping.
    pub available_bytes: u64,
    /// Bytes swapped in since its boot.
    pub swapped_in_bytes: u64,
    /// Bytes swapped out since its boot.
    pub swapped_out_bytes: u64,
    /// Page faults that waited for a disk, since its boot.
    pub major_faults: u64,
    /// How often its OOM killer ran, since its boot.
    pub oom_kills: u64,
}

impl Sample {
    /// Bytes in use that the guest cannot drop; `None` if its numbers contradict each other.
    pub(crate) fn used_bytes(&self) -> Option<u64> {
        self.total_bytes.checked_sub(self.available_bytes).filter(|_| self.total_bytes > 0)
    }
}
