// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon driver's half: what it acks, and its queues as values (Linux's
//! `drivers/virtio/virtio_balloon.c`).
//!
//! A queue is a [`DriverRing`](super::ring::DriverRing) with a way to notify the device and to be
//! notified, [`Notify`], and some guest memory of the driver's own. It can be used on whatever
//! thread it is moved to.

mod hinting;
mod negotiation;
mod pages;
mod reporting;
mod requests;
mod stats;

#[cfg(test)]
mod tests;

use core::time::Duration;

pub use hinting::{HINT_DONE, HINT_STOP, HintingQueue};
pub use negotiation::{FreePages, Negotiated};
pub use pages::{PFNS_PER_CHAIN, PageQueue, TellError};
pub use reporting::{CAPACITY, QueueTooSmall, ReportingCounters, ReportingQueue};
pub use requests::{RequestError, Requests};
pub use stats::{Stat, StatTag, StatsQueue};

/// Carries a queue's notifications.
pub trait Notify {
    /// Tells the device that there are chains to take.
    fn kick(&mut self);

    /// Waits for the device's notification and takes it; one that came before counts. Without a
    /// `timeout` it waits for as long as it takes.
    ///
    /// False if none came in time, or none can come any more since the device is gone for good.
    fn wait(&mut self, timeout: Option<Duration>) -> bool;
}
