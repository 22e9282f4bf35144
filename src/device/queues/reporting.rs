// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporting queue (virtio 1.3, section 5.5.6.7): each chain names pages that are free until
//! the device returns it.

use super::chain::{ChainError, ChainHead};
use super::log::DeviceLog;
use crate::discard::{GuestMemory, GuestRange, RangeError};
use crate::metrics::{Counters, Named, SkipReason};

/// Replaces `ranges` by the ranges that the chain reports, unchecked against the guest's memory.
///
/// A descriptor that is no report is skipped and counted. Of a chain that breaks nothing is kept:
/// whoever wrote it was not in its right mind, and a page kept is only a page not saved.
pub(super) fn collect(
    head: ChainHead,
    memory: &GuestMemory,
    ranges: &mut Vec<GuestRange>,
    counters: &Counters,
    log: &DeviceLog,
) {
    ranges.clear();
    let mut bytes: u64 = 0;
    let end: Result<(), ChainError> = head.walk(memory, |descriptor| {
        let (gpa, len) = (descriptor.addr().0, u64::from(descriptor.len()));
        let skip = if descriptor.is_write_only() {
            match GuestRange::new(gpa, len) {
                Ok(range) => {
                    // At most 32768 lengths of 32 bits: the sum fits.
                    bytes += len;
                    ranges.push(range);
                    return;
                }
                Err(RangeError::Empty) => SkipReason::Empty,
                Err(RangeError::Wraps) => SkipReason::Wraps,
            }
        } else {
            SkipReason::NotWritable
        };
        counters.skip(skip, len);
        log.skipped_report(skip, gpa, len);
    });
    counters.named(Named::Reporting, ranges.len() as u64, bytes);
    if let Err(error) = end {
        counters.skip(SkipReason::BrokenChain, bytes);
        DeviceLog::broken(&log.broken_report, "a report", error);
        ranges.clear();
    }
}

/// Counts what a chain names on a queue of which nobody can tell what it carries.
pub(super) fn turn_down(head: ChainHead, memory: &GuestMemory, counters: &Counters) {
    let mut bytes = 0;
    // Where it breaks off does not matter: nothing of it is used.
    let _ = head.walk(memory, |descriptor| bytes += u64::from(descriptor.len()));
    counters.skip(SkipReason::AmbiguousQueue, bytes);
}
