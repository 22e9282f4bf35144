// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A target for a time: unless it is renewed, the guest goes back to its base target.
//!
//! It lies over the base target and never replaces it, so that a program that sets targets may die at
//! any moment. It does not migrate, is not handed over, and a driver or a VMM that begins does not see it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::balloon::Balloon;
use super::config_space::BALLOON_PAGE_SIZE;
use super::target::{Lease, Target};
use crate::lock::lock;

impl Balloon {
    /// What operators want.
    pub(crate) fn target(&self) -> Target {
        let base_bytes = u64::from(self.config().num_pages()) * BALLOON_PAGE_SIZE;
        Target { base_bytes, base_forced: self.is_target_forced(), lease: *lock(&self.lease) }
    }

    /// Puts a lease over the base target, or takes it away. The driver must be notified
    /// ([`crate::state::State::announce_change`]).
    pub(crate) fn set_lease(&self, lease: Option<Lease>) {
        *lock(&self.lease) = lease;
        self.refusal_logged.store(false, Ordering::Relaxed);
    }

    /// Takes the lease away if it is over by `now`, and returns it.
    pub(crate) fn take_lease_over(&self, now: Instant) -> Option<Lease> {
        let over = lock(&self.lease).take_if(|lease| lease.until <= now);
        if over.is_some() {
            self.refusal_logged.store(false, Ordering::Relaxed);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::device::{DeviceOptions, MAX_LEASE};

    const PAGE: u64 = BALLOON_PAGE_SIZE;

    fn num_pages(balloon: &Balloon) -> u32 {
        u32::from_le_bytes(balloon.read_config(0, 4, true).try_into().unwrap())
    }

    fn leased(pages: u64, seconds: u64, now: Instant) -> Balloon {
        let balloon = Balloon::new(DeviceOptions::default(), std::sync::Arc::default());
        balloon.set_target(8 * PAGE, false).unwrap();
        let until = now + Duration::from_secs(seconds);
        balloon.set_lease(Some(Lease::new(pages * PAGE, false, until).unwrap()));
        balloon
    }

    #[test]
    fn lease_over_returns_to_base() {
        let now = Instant::now();
        for pages in [4, 32] {
            let balloon = leased(pages, 30, now);
            assert_eq!(u64::from(num_pages(&balloon)), pages);
            assert_eq!(balloon.save().num_pages, 8, "it does not migrate");
            assert_eq!(balloon.take_lease_over(now + Duration::from_secs(29)), None);
            let over = balloon.take_lease_over(now + Duration::from_secs(30)).unwrap();
            assert_eq!((over.bytes(), num_pages(&balloon)), (pages * PAGE, 8));
        }
    }

    #[test]
    fn lease_ends_with_target_driver_or_session() {
        let new_target = |balloon: &Balloon| balloon.set_target(8 * PAGE, false).unwrap();
        for end in [new_target, Balloon::reset, Balloon::begin_session] {
            let balloon = leased(32, 30, Instant::now());
            end(&balloon);
            assert_eq!((num_pages(&balloon), balloon.target().lease), (8, None));
        }
    }

    #[test]
    fn lease_too_large_refused_like_a_target() {
        let balloon = leased(32, 30, Instant::now());
        balloon.set_memory_bytes(48 * PAGE);
        assert!(balloon.refused_target().is_some());
        assert_eq!(num_pages(&balloon), 0);
        let until = Instant::now() + MAX_LEASE;
        balloon.set_lease(Some(Lease::new(32 * PAGE, true, until).unwrap()));
        assert_eq!((num_pages(&balloon), balloon.target().base_forced), (32, false));
        assert!(Lease::new(1, false, until).is_err());
    }
}
