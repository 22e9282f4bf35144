// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host: takes the contents of pages some time between submission and acknowledgement.

use core::time::Duration;

use super::setting::Answers;
use super::world::World;
use guest_driver::page_alloc::PfnRange;
use guest_driver::reporting::{Holding, ReportError, ReportSink};
use guest_driver::sync;

/// What the host of one run remembers.
pub(super) struct Host {
    holding: Holding,
    capacity: usize,
    answers: Answers,
    /// Reports so far.
    reports: usize,
    /// Those of a report that is not acknowledged, and whether they are discarded by now.
    late: Vec<PfnRange>,
    discarded: bool,
    /// Every other report loses half of its first range only.
    skips: bool,
    /// All of the last report was discarded.
    zero: bool,
}

impl Host {
    /// For a reporter that holds its pages so, and at most `capacity` of them in a report.
    pub(super) fn new(holding: Holding, capacity: usize, answers: Answers) -> Self {
        Self {
            holding,
            capacity,
            answers,
            reports: 0,
            late: Vec::new(),
            discarded: false,
            skips: false,
            zero: false,
        }
    }

    /// Of every other report it keeps half of the first range, and does not call that report zero.
    pub(super) fn skipping(self, skips: bool) -> Self {
        Self { skips, ..self }
    }

    /// The host as the reporter of `world` sees it.
    pub(super) fn of<'a>(&'a mut self, world: &'a World) -> impl ReportSink + 'a {
        HostOf { host: self, world }
    }
}

/// A host and its guest.
struct HostOf<'a> {
    host: &'a mut Host,
    world: &'a World,
}

impl HostOf<'_> {
    fn submit(&self, ranges: &[PfnRange]) {
        let World { mm, pages, .. } = self.world;
        for &range in ranges {
            pages.submit(mm, range, self.host.holding == Holding::Isolate);
        }
    }

    fn discard(&self, ranges: &[PfnRange]) {
        ranges.iter().for_each(|&range| self.world.pages.discard(range));
    }

    fn acknowledge(&self, ranges: &[PfnRange]) {
        let World { mm, pages, .. } = self.world;
        ranges.iter().for_each(|&range| pages.acknowledge(mm, range));
    }
}

impl ReportSink for HostOf<'_> {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        self.host.zero = false;
        if !self.host.late.is_empty() && !self.settle() {
            // The device has the one before.
            return Err(ReportError::Refused);
        }
        self.host.reports += 1;
        if self.host.answers == Answers::AllButFirst && self.host.reports == 1 {
            sync::yield_now();
            return Err(ReportError::Refused);
        }
        if self.host.answers == Answers::OneInThree {
            match self.host.reports % 3 {
                1 => {
                    self.submit(ranges);
                    self.host.late = ranges.to_vec();
                    self.host.discarded = false;
                    sync::yield_now();
                    return Err(ReportError::Timeout);
                }
                2 => {
                    sync::yield_now();
                    return Err(ReportError::Refused);
                }
                _ => {}
            }
        }
        self.submit(ranges);
        sync::yield_now();
        self.host.zero = !self.host.skips || self.host.reports.is_multiple_of(2);
        match ranges {
            [first, rest @ ..] if !self.host.zero => {
                let half = first.start.plus(first.pages() / 2);
                self.discard(&[PfnRange { start: first.start, end: half }]);
                self.discard(rest);
            }
            _ => self.discard(ranges),
        }
        sync::yield_now();
        self.acknowledge(ranges);
        Ok(())
    }

    /// The first call only discards.
    fn settle(&mut self) -> bool {
        if !self.host.discarded {
            self.discard(&self.host.late);
            self.host.discarded = true;
            sync::yield_now();
            return false;
        }
        let late = core::mem::take(&mut self.host.late);
        self.acknowledge(&late);
        true
    }

    fn is_zero(&self) -> bool {
        self.host.zero
    }

    fn capacity(&self) -> usize {
        self.host.capacity
    }
}
