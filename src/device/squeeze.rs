// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A target above the operator's that one reclaim sets for a time.
//!
//! It lies over the operator's target and never replaces it: letting go takes it away, and what the
//! operator has set meanwhile holds. It does not migrate, and a driver or a VMM that begins does not
//! see it.

use super::balloon::Balloon;
use super::config_space::{BALLOON_PAGE_SIZE, TargetError, pages};
use super::target::{Squeeze, Stop};
use crate::lock::lock;

impl Balloon {
    /// Claims the squeeze for one reclaim; false if another has it.
    pub(crate) fn claim_squeeze(&self) -> bool {
        let mut squeeze = lock(&self.squeeze);
        let is_free = !squeeze.claimed;
        if is_free {
            *squeeze = Squeeze { claimed: true, ..Squeeze::default() };
        }
        is_free
    }

    /// Whether a reclaim is in progress.
    pub(crate) fn is_squeeze_claimed(&self) -> bool {
        lock(&self.squeeze).claimed
    }

    /// Has the reclaim in progress let go, for this reason unless it has one; false if there is none.
    pub(crate) fn stop_squeeze(&self, why: Stop) -> bool {
        let mut squeeze = lock(&self.squeeze);
        if squeeze.claimed {
            squeeze.stopped.get_or_insert(why);
        }
        squeeze.claimed
    }

    /// Why the reclaim in progress has to let go, if it has to.
    pub(crate) fn squeeze_stopped(&self) -> Option<Stop> {
        lock(&self.squeeze).stopped
    }

    /// Lets go and ends the claim. The driver must be notified
    /// ([`crate::state::State::announce_change`]).
    pub(crate) fn release_squeeze(&self) {
        *lock(&self.squeeze) = Squeeze::default();
    }

    /// Wants `bytes` in the balloon, or what the operator wants if that is more; `None` lets go. The
    /// driver must be notified ([`crate::state::State::announce_change`]).
    ///
    /// # Errors
    /// [`TargetError`]; nothing changes.
    pub(crate) fn squeeze(&self, bytes: Option<u64>) -> Result<(), TargetError> {
        let pages = bytes.map(pages).transpose()?;
        lock(&self.squeeze).pages = pages;
        Ok(())
    }

    /// Bytes that a reclaim wants in the balloon; `None` if none squeezes.
    pub(crate) fn squeeze_bytes(&self) -> Option<u64> {
        lock(&self.squeeze).pages.map(|pages| u64::from(pages) * BALLOON_PAGE_SIZE)
    }

    /// Bytes in the balloon that the guest reads as the operator's target: 0 if it is refused.
    pub(crate) fn told_target_bytes(&self) -> u64 {
        self.refused_target().map_or_else(|| self.target_bytes(), |_| 0)
    }

    /// A driver or a VMM begins, which no reclaim, and no lease's owner, has looked at.
    pub(super) fn forget_times(&self) {
        lock(&self.squeeze).pages = None;
        self.set_lease(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceOptions;

    fn num_pages(balloon: &Balloon) -> u32 {
        u32::from_le_bytes(balloon.read_config(0, 4, true).try_into().unwrap())
    }

    #[test]
    fn squeeze_over_target_leaves_it_unchanged() {
        let balloon = Balloon::new(DeviceOptions::default(), std::sync::Arc::default());
        balloon.set_target(8 * BALLOON_PAGE_SIZE, false).unwrap();
        assert!(balloon.claim_squeeze() && !balloon.claim_squeeze());
        balloon.squeeze(Some(32 * BALLOON_PAGE_SIZE)).unwrap();
        assert_eq!((num_pages(&balloon), balloon.target_bytes()), (32, 8 * BALLOON_PAGE_SIZE));
        assert_eq!(balloon.save().num_pages, 8, "it does not migrate");
        // The operator's larger target holds, and so does a smaller one once it is let go.
        balloon.set_target(64 * BALLOON_PAGE_SIZE, false).unwrap();
        assert_eq!(num_pages(&balloon), 64);
        balloon.set_target(4 * BALLOON_PAGE_SIZE, false).unwrap();
        assert_eq!(num_pages(&balloon), 32);
        balloon.release_squeeze();
        assert_eq!((num_pages(&balloon), balloon.squeeze_bytes()), (4, None));
        assert!(balloon.claim_squeeze());
        assert!(balloon.squeeze(Some(1)).is_err());
    }

    #[test]
    fn squeeze_new_driver_or_session_is_gone() {
        let balloon = Balloon::new(DeviceOptions::default(), std::sync::Arc::default());
        for begin in [Balloon::reset, Balloon::begin_session] {
            balloon.squeeze(Some(32 * BALLOON_PAGE_SIZE)).unwrap();
            begin(&balloon);
            assert_eq!(num_pages(&balloon), 0);
        }
    }
}
