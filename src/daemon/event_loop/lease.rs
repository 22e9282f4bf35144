// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lease of a target ends in time, whatever became of the program that took it.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::Daemon;

impl Daemon {
    /// Sets the timer to the end of the present lease.
    pub(super) fn keep_lease(&mut self) {
        let until = self.state.balloon.target().lease.map(|lease| lease.until);
        if until == self.lease_until {
            return;
        }
        let set = match until {
            // Zero would stop the timer.
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.lease.reset(left.max(Duration::from_nanos(1)), None)
            }
            None => self.lease.clear(),
        };
        if let Err(error) = set {
            warn!("cannot set the timer of the target's lease: {error}");
        }
        self.lease_until = until;
    }

    /// The timer has gone off: the guest goes back to the base target, unless the lease was renewed.
    pub(super) fn lease_over(&mut self) {
        if let Err(error) = self.lease.wait() {
            warn!("cannot read a timer: {error}");
        }
        self.lease_until = None;
        let balloon = &self.state.balloon;
        let Some(lease) = balloon.take_lease_over(Instant::now()) else { return };
        let base = balloon.target_bytes();
        info!("lease of {} bytes is over, target {base} bytes", lease.bytes());
        if self.state.announce_change().is_err() {
            self.state.tell_driver_later();
        }
    }
}
