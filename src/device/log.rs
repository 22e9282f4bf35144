// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device says of its guest, each kind of message at a rate of its own.
//!
//! A guest chooses how often most of this happens. A limit that several kinds shared would let a
//! frequent one hide a rare one.

use log::{info, warn};

use super::chain::ChainError;
use crate::logging::rate_limit::{Latch, LogLimit};
use crate::metrics::SkipReason;

/// One limit a kind of message, and one latch a state that lasts.
#[derive(Debug, Default)]
pub(super) struct DeviceLog {
    /// New features.
    pub(super) acked: LogLimit,
    /// A target of the VMM.
    pub(super) target_of_vmm: LogLimit,
    /// A list that names too many pages of the balloon.
    pub(super) too_many_pages: LogLimit,
    /// A chain that breaks, on each kind of queue.
    pub(super) broken_list: LogLimit,
    pub(super) broken_report: LogLimit,
    pub(super) broken_statistics: LogLimit,
    pub(super) broken_hints: LogLimit,
    empty: LogLimit,
    wraps: LogLimit,
    not_writable: LogLimit,
    poison_not_told: Latch,
    ambiguous_queue: Latch,
}

impl DeviceLog {
    /// A descriptor of a report that is none.
    pub(super) fn skipped_report(&self, reason: SkipReason, gpa: u64, len: u64) {
        let limit = match reason {
            SkipReason::Empty => &self.empty,
            SkipReason::Wraps => &self.wraps,
            _ => &self.not_writable,
        };
        limit.run(|| warn!("the guest reported {gpa:#x}, {len} bytes: {reason:?}, skipped"));
    }

    /// A chain that breaks, on the queue that `limit` is for.
    pub(super) fn broken(limit: &LogLimit, what: &str, error: ChainError) {
        limit.run(|| warn!("{what} is broken, nothing of it is used: {error}"));
    }

    /// Whether reports are skipped because this daemon does not know the guest's poison value.
    pub(super) fn poison_not_told(&self, holds: bool) {
        self.poison_not_told.set(
            holds,
            || {
                warn!(
                    "the guest poisons its free pages and has not told this daemon with what: \
                     reported pages stay until its driver is loaded again"
                );
            },
            || info!("the guest's poison value does not keep reported pages any more"),
        );
    }

    /// Whether chains come on a queue that has two meanings.
    pub(super) fn ambiguous_queue(&self, holds: bool) {
        self.ambiguous_queue.set(
            holds,
            || {
                warn!(
                    "queue 3 carries hints in the specification's numbering and reports in Linux's: \
                     nothing on it is discarded. The driver acked both and no statistics"
                );
            },
            || info!("queue 3 has one meaning again"),
        );
    }
}
