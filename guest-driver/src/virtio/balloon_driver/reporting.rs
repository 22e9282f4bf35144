// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporting queue (`virtballoon_free_page_report`).

use alloc::vec::Vec;
use core::time::Duration;

use super::{Notify, RequestError, Requests};
use crate::page_alloc::PfnRange;
use crate::page_alloc::geometry::PAGE_BYTES;
use crate::ram::{Gpa, GuestRam};
use crate::reporting::{ReportError, ReportSink};
use crate::time;
use crate::virtio::layout::Descriptor;
use crate::virtio::ring::Buffer;

/// The most ranges in one report (`PAGE_REPORTING_CAPACITY`).
pub const CAPACITY: usize = 32;

/// The reporting queue has fewer descriptors than a report (`-ENOSPC` of Linux's probe).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reporting queue has {0} descriptors, and a report takes {CAPACITY}")]
pub struct QueueTooSmall(pub u16);

/// What a reporting queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportingCounters {
    /// Reports that were acknowledged, a chain each.
    pub chains: u64,
    /// Ranges in them.
    pub ranges: u64,
    /// Pages in those.
    pub pages: u64,
    /// Reports that the ring or the device did not take.
    pub refused: u64,
    /// Reports that were not acknowledged in time.
    pub timeouts: u64,
    /// Time from a report's first descriptor to its acknowledgement, of all of them.
    pub waited: Duration,
}

/// Reports free pages to the device, one chain at a time.
///
/// A report that was not acknowledged in time leaves its chain with the device. Until it comes back
/// no other is given: see [`ReportingQueue::outstanding`].
#[derive(Debug)]
pub struct ReportingQueue<M, N> {
    requests: Requests<M, N>,
    table: Option<Gpa>,
    counters: ReportingCounters,
    outstanding: Vec<PfnRange>,
    /// Used lengths mean something.
    init: bool,
    /// The device says that the last report is zero.
    zero: bool,
    buffers: Vec<Buffer>,
}

impl<M: GuestRam, N: Notify> ReportingQueue<M, N> {
    /// Bytes of an indirect table.
    pub const TABLE_BYTES: u64 = (CAPACITY * Descriptor::BYTES) as u64;

    /// With a `table`, [`ReportingQueue::TABLE_BYTES`] of the driver's own memory, reports are
    /// indirect; [`super::super::feature::INDIRECT_DESC`] has to be negotiated then.
    ///
    /// # Errors
    /// [`QueueTooSmall`], with a table too, as in Linux.
    pub fn new(requests: Requests<M, N>, table: Option<Gpa>) -> Result<Self, QueueTooSmall> {
        let size = requests.size();
        if usize::from(size) < CAPACITY {
            return Err(QueueTooSmall(size));
        }
        Ok(Self {
            requests,
            table,
            counters: ReportingCounters::default(),
            outstanding: Vec::new(),
            init: false,
            zero: false,
            buffers: Vec::with_capacity(CAPACITY),
        })
    }

    /// Takes a used length that is the sum of a report's buffers as the device's word that all of it is
    /// zero. Where [`DEVICE_INIT_REPORTED`](crate::virtio::balloon::feature::DEVICE_INIT_REPORTED) was
    /// negotiated.
    #[must_use]
    pub fn with_init(self) -> Self {
        Self { init: true, ..self }
    }

    /// What was done so far.
    pub fn counters(&self) -> ReportingCounters {
        self.counters
    }

    /// The ranges of a report that was not acknowledged in time: the host may discard them at any
    /// moment. None once [`ReportingQueue::wait_settled`] has said so or another report was taken.
    pub fn outstanding(&self) -> &[PfnRange] {
        &self.outstanding
    }

    /// Waits for a report that was not acknowledged in time; says whether it is now, or there was
    /// none.
    pub fn wait_settled(&mut self, timeout: Option<Duration>) -> bool {
        let settled = self.requests.wait(timeout).is_ok();
        if settled {
            self.outstanding.clear();
        }
        settled
    }

    /// The ranges as buffers; false if that is impossible.
    fn fill_buffers(&mut self, ranges: &[PfnRange]) -> bool {
        self.buffers.clear();
        for range in ranges {
            let bytes = u64::from(range.pages()) * PAGE_BYTES;
            let Ok(len) = u32::try_from(bytes) else { return false };
            self.buffers.push(Buffer::writable(Gpa(range.start.address()), len));
        }
        self.buffers.len() <= CAPACITY
    }
}

impl<M: GuestRam, N: Notify> ReportSink for ReportingQueue<M, N> {
    fn report(
        &mut self,
        ranges: &[PfnRange],
        timeout: Option<Duration>,
    ) -> Result<(), ReportError> {
        self.zero = false;
        if ranges.is_empty() {
            return Ok(());
        }
        if !self.fill_buffers(ranges) {
            self.counters.refused += 1;
            return Err(ReportError::Refused);
        }
        let started = time::now();
        let (table, buffers) = (self.table, self.buffers.as_slice());
        let sent = self.requests.send(timeout, |ring| match table {
            Some(table) => ring.add_indirect(table, buffers),
            None => ring.add_chain(buffers),
        });
        self.counters.waited += time::now().saturating_sub(started);
        match sent {
            Ok(used) => {
                let bytes: u64 = self.buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
                self.zero = self.init && u64::from(used) == bytes;
                self.outstanding.clear();
                self.counters.chains += 1;
                self.counters.ranges += ranges.len() as u64;
                self.counters.pages += ranges.iter().map(|r| u64::from(r.pages())).sum::<u64>();
                Ok(())
            }
            Err(RequestError::NotTaken(_) | RequestError::Busy) => {
                self.counters.refused += 1;
                Err(ReportError::Refused)
            }
            Err(RequestError::Timeout | RequestError::Lost(_)) => {
                self.outstanding.extend_from_slice(ranges);
                self.counters.timeouts += 1;
                Err(ReportError::Timeout)
            }
        }
    }

    fn settle(&mut self) -> bool {
        self.wait_settled(Some(Duration::ZERO))
    }

    fn is_zero(&self) -> bool {
        self.zero
    }

    fn capacity(&self) -> usize {
        CAPACITY
    }
}
