// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host: takes what pages hold some time between submission and acknowledgement.

use core::time::Duration;
use std::sync::Arc;

use crate::scenarios::reporting::actors::World;
use guest_driver::page_alloc::PfnRange;
use guest_driver::reporting::{Holding, ReportError, ReportSink};
use guest_driver::sync;

/// Whether a host acknowledges what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Every report, before anybody loses patience.
    Always,
    /// Of three reports the first too late, the second not taken at all, and the third as it should.
    OneInThree,
}

/// The host of one run.
pub struct Host {
    world: Arc<World>,
    holding: Holding,
    capacity: usize,
    answers: Answers,
    /// Reports so far.
    reports: usize,
    /// Those of a report that is not acknowledged, and whether they are discarded by now.
    late: Vec<PfnRange>,
    discarded: bool,
}

impl Host {
    /// For a reporter that holds its pages so, and at most `capacity` of them in a report.
    pub fn new(world: Arc<World>, holding: Holding, capacity: usize, answers: Answers) -> Self {
        let (reports, late, discarded) = (0, Vec::new(), false);
        Self { world, holding, capacity, answers, reports, late, discarded }
    }

    /// Whom it serves.
    pub fn world(&self) -> &World {
        &self.world
    }

    fn submit(&self, ranges: &[PfnRange]) {
        let World { mm, shadow, .. } = &*self.world;
        for &range in ranges {
            shadow.submit(mm, range, self.holding == Holding::Isolate);
        }
    }

    fn discard(&self, ranges: &[PfnRange]) {
        ranges.iter().for_each(|&range| self.world.shadow.discard(range));
    }

    fn acknowledge(&self, ranges: &[PfnRange]) {
        let World { mm, shadow, .. } = &*self.world;
        ranges.iter().for_each(|&range| shadow.acknowledge(mm, range));
    }
}

impl ReportSink for Host {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        if !self.late.is_empty() && !self.settle() {
            // The device has the one before.
            return Err(ReportError::Refused);
        }
        self.reports += 1;
        if self.answers == Answers::OneInThree {
            match self.reports % 3 {
                1 => {
                    self.submit(ranges);
                    self.late = ranges.to_vec();
                    self.discarded = false;
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
        self.discard(ranges);
        sync::yield_now();
        self.acknowledge(ranges);
        Ok(())
    }

    /// The first time that it is asked it only discards.
    fn settle(&mut self) -> bool {
        if !self.discarded {
            self.discard(&self.late);
            self.discarded = true;
            sync::yield_now();
            return false;
        }
        let late = core::mem::take(&mut self.late);
        self.acknowledge(&late);
        true
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}
