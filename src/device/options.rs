// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator wants the device to offer.

use std::time::Duration;

use super::config_space::{TargetError, pages};

/// The longest time between two polls of statistics; the shortest is [`MIN_STATISTICS_INTERVAL`].
pub(crate) const MAX_STATISTICS_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest time between two polls of statistics: a guest that is asked more often has little
/// else to do.
pub(crate) const MIN_STATISTICS_INTERVAL: Duration = Duration::from_millis(10);

/// Which parts of the device there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceOptions {
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
    /// `VIRTIO_BALLOON_F_DEVICE_INIT_REPORTED`, ahead of the specification.
    pub init_reported: bool,
    /// `VIRTIO_BALLOON_F_DEVICE_INIT_ON_INFLATE`, ahead of the specification.
    pub init_on_inflate: bool,
    /// The first target of the balloon, in bytes.
    pub target_bytes: u64,
    /// Lets that size leave less than a reserve to the guest.
    pub force_target: bool,
    /// The VMM may set the target.
    pub target_from_vmm: bool,
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
            init_reported: false,
            init_on_inflate: false,
            target_bytes: 0,
            force_target: false,
            target_from_vmm: false,
        }
    }
}

/// Options that do not go together, or a value that none can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionsError {
    /// Hints and reports without statistics: see [`super::features::role`].
    #[error(
        "free page hints and free page reporting cannot be offered together without statistics: \
         queue 3 would carry hints in the specification's numbering and reports in Linux's. Add \
         statistics, or leave hints or reporting out"
    )]
    AmbiguousQueues,
    /// What is said of reports, where there are none.
    #[error(
        "--experimental-init-reported says which reported pages are zero, and free page reporting is          not offered: leave out that option or --no-reporting"
    )]
    InitWithoutReporting,
    /// The interval of the statistics.
    #[error(transparent)]
    Interval(#[from] IntervalError),
    /// The balloon's first size.
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// Why statistics cannot be polled that often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IntervalError {
    /// The device has no statistics queue.
    #[error("statistics are not offered to the guest, so there is nothing to poll")]
    NotOffered,
    /// Too short or too long.
    #[error(
        "a statistics interval is 0 (never) or from {min:?} to {max:?}, not {0:?}",
        min = MIN_STATISTICS_INTERVAL,
        max = MAX_STATISTICS_INTERVAL
    )]
    OutOfRange(Duration),
}

impl DeviceOptions {
    /// Whether there can be a device with these options.
    ///
    /// # Errors
    /// [`OptionsError`], which says what to change.
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        if self.free_page_hints && self.reporting && !self.statistics {
            return Err(OptionsError::AmbiguousQueues);
        }
        if self.init_reported && !self.reporting {
            return Err(OptionsError::InitWithoutReporting);
        }
        self.check_interval(self.statistics_interval)?;
        pages(self.target_bytes)?;
        Ok(())
    }

    /// Whether statistics can be polled every `interval`; zero, never, is always possible.
    pub(super) fn check_interval(&self, interval: Duration) -> Result<(), IntervalError> {
        if interval.is_zero() {
            return Ok(());
        }
        if !self.statistics {
            return Err(IntervalError::NotOffered);
        }
        if !(MIN_STATISTICS_INTERVAL..=MAX_STATISTICS_INTERVAL).contains(&interval) {
            return Err(IntervalError::OutOfRange(interval));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_beside_reports_need_statistics() {
        let options = DeviceOptions::default();
        assert_eq!(options.check(), Ok(()));
        let both = DeviceOptions { free_page_hints: true, ..options };
        assert_eq!(both.check(), Err(OptionsError::AmbiguousQueues));
        assert!(both.check().unwrap_err().to_string().contains("Add statistics"));
        assert_eq!(DeviceOptions { statistics: true, ..both }.check(), Ok(()));
        assert_eq!(DeviceOptions { reporting: false, ..both }.check(), Ok(()));
    }

    #[test]
    fn values_have_their_limits() {
        let statistics = DeviceOptions { statistics: true, ..DeviceOptions::default() };
        let every = |statistics_interval| DeviceOptions { statistics_interval, ..statistics };
        for good in [Duration::ZERO, MIN_STATISTICS_INTERVAL, MAX_STATISTICS_INTERVAL] {
            assert_eq!(every(good).check(), Ok(()));
        }
        for bad in [Duration::from_nanos(1), Duration::from_secs(86401), Duration::MAX] {
            let expected = OptionsError::Interval(IntervalError::OutOfRange(bad));
            assert_eq!(every(bad).check(), Err(expected));
        }
        let deaf = DeviceOptions { statistics: false, ..every(Duration::from_secs(1)) };
        assert_eq!(deaf.check(), Err(OptionsError::Interval(IntervalError::NotOffered)));
        let target = |target_bytes| DeviceOptions { target_bytes, ..DeviceOptions::default() };
        assert_eq!(target(1 << 30).check(), Ok(()));
        assert_eq!(target(4097).check(), Err(OptionsError::Target(TargetError::NotPages(4097))));
    }
}
