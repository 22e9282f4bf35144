// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Held pages on their way to the sink.

use alloc::vec::Vec;

use super::config::{Config, OnTimeout, ZeroReports};
use super::hold::release;
use super::sink::{ReportError, ReportSink};
use super::tracker::marks::Marks;
use crate::page_alloc::{Mm, PfnRange};

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassStats {
    /// Reports acknowledged.
    pub reports: u64,
    /// Of these, after their time was up.
    pub late: u64,
    /// Ranges in them.
    pub ranges: u64,
    /// Pages in those.
    pub pages: u64,
    /// Granules that the tracker offered.
    pub offered: u64,
    /// Of these, not free by a look without a lock.
    pub not_free: u64,
    /// Held by another isolator.
    pub busy: u64,
    /// No longer free when isolated.
    pub lost_race: u64,
    /// Times that the pass met a block, or a list, which its zone could not spare.
    pub low_memory: u64,
    /// The most pages held at once.
    pub most_held: u64,
    /// A report failed, or the host still has the one before, and the pass ended.
    pub failed: bool,
}

impl core::ops::AddAssign for PassStats {
    fn add_assign(&mut self, other: Self) {
        // Without `..`, so that a new figure cannot be forgotten.
        let Self {
            reports,
            late,
            ranges,
            pages,
            offered,
            not_free,
            busy,
            lost_race,
            low_memory,
            most_held,
            failed,
        } = other;
        self.reports += reports;
        self.late += late;
        self.ranges += ranges;
        self.pages += pages;
        self.offered += offered;
        self.not_free += not_free;
        self.busy += busy;
        self.lost_race += lost_race;
        self.low_memory += low_memory;
        self.most_held = self.most_held.max(most_held);
        self.failed |= failed;
    }
}

/// Pages that are held, to be reported together.
pub(super) struct Batch<'a> {
    pub(super) mm: &'a Mm,
    pub(super) config: Config,
    sink: &'a mut dyn ReportSink,
    pub(super) held: Vec<PfnRange>,
    /// What was held and stays so, since the host may have it still.
    pub(super) late: Vec<PfnRange>,
    pub(super) stats: PassStats,
}

/// Pages in these ranges.
pub(super) fn pages(ranges: &[PfnRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.pages())).sum()
}

impl<'a> Batch<'a> {
    pub(super) fn new(mm: &'a Mm, config: Config, sink: &'a mut dyn ReportSink) -> Self {
        let (held, late, stats) = (Vec::new(), Vec::new(), PassStats::default());
        Self { mm, config, sink, held, late, stats }
    }

    pub(super) fn capacity(&self) -> usize {
        self.sink.capacity().min(self.config.batch)
    }

    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= self.capacity()
    }

    pub(super) fn push(&mut self, range: PfnRange) {
        self.held.push(range);
        self.stats.most_held = self.stats.most_held.max(pages(&self.held));
    }

    /// Reports what is held and releases it. What was not taken needs reporting still, and is marked
    /// if there are marks.
    pub(super) fn submit(&mut self, marks: Option<&dyn Marks>) {
        if self.held.is_empty() {
            return;
        }
        let Config { granule_order, acknowledge_timeout, on_timeout, .. } = self.config;
        let result = self.sink.report(&self.held, acknowledge_timeout);
        match result {
            Ok(()) => {
                self.stats.reports += 1;
                self.stats.ranges += self.held.len() as u64;
                self.stats.pages += pages(&self.held);
            }
            Err(_) => self.stats.failed = true,
        }
        if (result, on_timeout) == (Err(ReportError::Timeout), OnTimeout::Hold) {
            self.late.append(&mut self.held);
            return;
        }
        let zero = result.is_ok()
            && match self.config.zero_reports {
                ZeroReports::None => false,
                ZeroReports::AsTold => self.sink.is_zero(),
                ZeroReports::All => true,
            };
        for range in self.held.drain(..) {
            if zero {
                self.mm.mark_zero(range);
            }
            if let (Err(_), Some(marks)) = (result, marks) {
                range.step(granule_order).for_each(|granule| marks.mark(self.mm, granule));
            }
            release(self.mm, &self.config, range, result.is_ok());
        }
    }
}
