//! Feature bits, and the meaning of each queue that follows from those the driver acked.

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::DeviceOptions;

/// `VIRTIO_BALLOON_F_PAGE_POISON`: the guest tells what it fills its free pages with.
pub const VIRTIO_BALLOON_F_PAGE_POISON: u32 = 4;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`: the guest reports its free pages.
pub const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// Queues of the device: inflate, deflate, statistics, free page hints, reporting
/// (virtio 1.3, 5.5.2).
pub const NUM_QUEUES: usize = 5;

/// The largest ring that virtio allows (virtio 1.3, 2.7). A VMM that lets the guest choose may go
/// up to it, and a device that takes less fails to come up there.
pub const MAX_QUEUE_SIZE: usize = 32768;

/// What the device offers.
///
/// `PAGE_POISON` is what makes reporting work in a guest that clears its pages when it frees them:
/// Linux gives reporting up when such a guest cannot say so. `IN_ORDER` costs nothing, since chains
/// are served one after the other, and lets a frontend that lost its backend go on from the used
/// index.
pub fn offered(options: &DeviceOptions) -> u64 {
    let reporting = (1 << VIRTIO_BALLOON_F_PAGE_POISON) | (1 << VIRTIO_BALLOON_F_REPORTING);
    (1 << VIRTIO_F_VERSION_1)
        | (1 << VIRTIO_F_IN_ORDER)
        | (1 << VIRTIO_RING_F_EVENT_IDX)
        | (1 << VIRTIO_RING_F_INDIRECT_DESC)
        | if options.reporting { reporting } else { 0 }
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// The features that a driver has acked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Whether bit `feature` was acked.
    pub fn has(self, feature: u32) -> bool {
        self.0 >> feature & 1 == 1
    }
}

/// What a queue carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// Pages that the driver gives to the balloon.
    Inflate,
    /// Pages that the driver takes back from the balloon.
    Deflate,
    /// Free pages that the driver reports.
    Reporting,
    /// Statistics.
    Statistics,
}

/// The role of the queue with this index; `None` past the last queue.
///
/// The specification numbers the reporting queue 4. Linux counts only the queues that were
/// negotiated, which makes it 2 as long as neither statistics nor hints are offered, and a
/// proposed change to Linux would have tried 3. None of the three can mean anything else here, so
/// all of them are reporting.
pub fn role(index: usize) -> Option<QueueRole> {
    match index {
        0 => Some(QueueRole::Inflate),
        1 => Some(QueueRole::Deflate),
        2..NUM_QUEUES => Some(QueueRole::Reporting),
        _ => None,
    }
}
