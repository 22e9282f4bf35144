//! What an operator wants the device to offer.

use std::time::Duration;

/// Which parts of the device there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// `VIRTIO_BALLOON_F_STATS_VQ`: the guest tells how it uses its memory.
    pub statistics: bool,
    /// How often statistics are asked for; zero for never.
    pub statistics_interval: Duration,
    /// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`. Hinted pages may be in use again before they are
    /// discarded.
    pub free_page_hints: bool,
    /// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest may take pages out of the balloon when it has
    /// no others.
    pub deflate_on_oom: bool,
    /// `VIRTIO_BALLOON_F_MUST_TELL_HOST`: the guest says so before it uses a page of the balloon.
    pub must_tell_host: bool,
    /// `VIRTIO_BALLOON_F_PAGE_REPORTING` and `VIRTIO_BALLOON_F_PAGE_POISON`.
    pub reporting: bool,
    /// How large the balloon is to be at first, in bytes.
    pub target_bytes: u64,
}

impl Default for DeviceOptions {
    /// Free page reporting, and a balloon that stays empty until the operator says otherwise.
    fn default() -> Self {
        Self {
            statistics: false,
            statistics_interval: Duration::ZERO,
            free_page_hints: false,
            deflate_on_oom: false,
            must_tell_host: false,
            reporting: true,
            target_bytes: 0,
        }
    }
}
