// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporting queue (virtio 1.3, section 5.5.6.7): each chain names pages that are free until
//! the device returns it.

use super::contents::Contents;
use super::{Action, QueueHandler};
use crate::device::balloon::Balloon;
use crate::device::chain::{ChainError, ChainHead, Outcome};
use crate::device::features::Feature;
use crate::device::log::DeviceLog;
use crate::discard::{GuestMemory, GuestRange, RangeError};
use crate::lock::lock;
use crate::metrics::{Counters, Named, SkipReason};

pub(super) struct Reporting;

impl QueueHandler for Reporting {
    fn collect(
        &self,
        balloon: &Balloon,
        head: ChainHead,
        memory: &GuestMemory,
        contents: &mut Contents,
    ) -> Action {
        lock(&balloon.seen).reported = true;
        let ranges = &mut contents.ranges;
        let plain = collect(head, memory, ranges, &balloon.counters, &balloon.log);
        if balloon.acked().has(Feature::DeviceInitReported) {
            // A used length has 32 bits: more than it can say is not said.
            contents.claim.report_bytes = plain.and_then(|bytes| u32::try_from(bytes).ok());
        }
        let forbidden = forbids_discard(balloon);
        balloon.log.poison_not_told(forbidden == Some(SkipReason::PoisonNotTold));
        let Some(reason) = forbidden else { return Action::Discard };
        balloon.counters.skip(reason, ranges.iter().map(GuestRange::len).sum());
        Action::Nothing
    }

    fn begins(&self, balloon: &Balloon, _untouched: bool) {
        lock(&balloon.seen).reported = false;
    }

    fn finish(&self, _balloon: &Balloon, _memory: &GuestMemory, contents: &Contents) -> Outcome {
        contents.claim.answer_report(&contents.ranges, &contents.zeroed)
    }
}

/// Why reported pages must keep their contents; `None` if they may be discarded.
fn forbids_discard(balloon: &Balloon) -> Option<SkipReason> {
    let acked = balloon.acked();
    if !acked.has(Feature::PageReporting) {
        return Some(SkipReason::NotNegotiated);
    }
    if !acked.has(Feature::PagePoison) {
        return None;
    }
    // A discarded page reads as zeros, so zero is the one poison that survives (5.5.6.7.2).
    let config = balloon.config();
    match config.poison_val() {
        0 if config.poison_is_known() => None,
        0 => Some(SkipReason::PoisonNotTold),
        _ => Some(SkipReason::Poisoned),
    }
}

/// Replaces `ranges` by the ranges that the chain reports, unchecked against the guest's memory.
///
/// A descriptor that is no report is skipped and counted. Nothing of a broken chain is used: a page
/// that is not discarded costs memory, a wrong one costs the guest its data. Returns the bytes of the
/// chain's buffers, if all of them are reports.
fn collect(
    head: ChainHead,
    memory: &GuestMemory,
    ranges: &mut Vec<GuestRange>,
    counters: &Counters,
    log: &DeviceLog,
) -> Option<u64> {
    ranges.clear();
    let (mut bytes, mut plain) = (0_u64, true);
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
        plain = false;
        counters.skip(skip, len);
        log.skipped_report(skip, gpa, len);
    });
    counters.named(Named::Reporting, ranges.len() as u64, bytes);
    if let Err(error) = end {
        counters.skip(SkipReason::BrokenChain, bytes);
        DeviceLog::broken(&log.broken_report, "a report", error);
        ranges.clear();
        plain = false;
    }
    plain.then_some(bytes)
}
