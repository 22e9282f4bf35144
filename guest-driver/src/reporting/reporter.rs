// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter's pass.

use core::time::Duration;
use std::sync::Arc;

use super::clock::{Clock, RealClock, VirtualClock};
use super::hold::{Attempt, hold, release};
use super::schedule::Schedule;
use super::tracker::reported_flag::FreeLists;
use super::tracker::{self, Tracker, Visit};
use super::{Config, Holding, OnBusy, OnTimeout, ReportError, ReportSink};
use crate::page_alloc::{Mm, Pfn, PfnRange};

/// Somebody reports free pages of this memory already (`-EBUSY` of `page_reporting_register`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("free pages of this memory are reported already")]
pub struct AlreadyRegistered;

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
    /// Of these, not free by a look without a lock (step 1).
    pub not_free: u64,
    /// Isolated by somebody else (step 2).
    pub busy: u64,
    /// Not free any more when isolated (step 3a).
    pub lost_race: u64,
    /// Times that the pass stopped for lack of memory.
    pub low_memory: u64,
    /// The most pages held at once.
    pub most_held: u64,
    /// A report failed, or the one before is with the host still, and the pass ended.
    pub failed: bool,
}

impl core::ops::AddAssign for PassStats {
    fn add_assign(&mut self, other: Self) {
        self.reports += other.reports;
        self.late += other.late;
        self.ranges += other.ranges;
        self.pages += other.pages;
        self.offered += other.offered;
        self.not_free += other.not_free;
        self.busy += other.busy;
        self.lost_race += other.lost_race;
        self.low_memory += other.low_memory;
        self.most_held = self.most_held.max(other.most_held);
        self.failed |= other.failed;
    }
}

/// Finds and reports free pages of one guest.
pub struct Reporter {
    pub(super) mm: Arc<Mm>,
    pub(super) config: Config,
    memory: Memory,
    pub(super) schedule: Arc<Schedule>,
    /// Pages of a report that was not acknowledged in time: held, and the host's.
    late: Vec<PfnRange>,
}

/// How it is remembered what needs reporting.
enum Memory {
    /// In bits beside the pages.
    Tracker(Arc<dyn Tracker>),
    /// On the free lists themselves.
    Lists,
}

impl Reporter {
    /// Registers a reporter in real time. All memory that is free now needs reporting, and the
    /// first pass is due a delay from now.
    ///
    /// # Errors
    /// [`AlreadyRegistered`] if the memory has one.
    pub fn new(mm: Arc<Mm>, config: Config) -> Result<Self, AlreadyRegistered> {
        Self::with_clock(mm, config, Arc::new(RealClock::new()))
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// [`AlreadyRegistered`] if the memory has one.
    pub fn with_clock(
        mm: Arc<Mm>,
        config: Config,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AlreadyRegistered> {
        let schedule = Arc::new(Schedule::new(clock, config.delay));
        let passes = Arc::clone(&schedule);
        let memory =
            match tracker::new(config.tracker, config.flaw, &mm, config.granule_order, passes) {
                Some(tracker) => {
                    mm.set_free_hook(Arc::clone(&tracker).hook()).map_err(|_| AlreadyRegistered)?;
                    mark_all(&mm, tracker.as_ref(), config.granule_order);
                    Memory::Tracker(tracker)
                }
                None => {
                    let hook = FreeLists::new(config.granule_order, Arc::clone(&schedule));
                    mm.set_free_hook(Arc::new(hook)).map_err(|_| AlreadyRegistered)?;
                    Memory::Lists
                }
            };
        Ok(Self { mm, config, memory, schedule, late: Vec::new() })
    }

    /// Lets the guest go on without being reported: frees are not told any more, as if no device
    /// were there (`page_reporting_unregister`).
    pub fn suspend(&mut self) {
        self.mm.tell_hook(false);
    }

    /// Goes on. What was freed meanwhile nobody knows, so all free memory needs reporting; with
    /// [`TrackerKind::ReportedFlag`](super::TrackerKind::ReportedFlag) all that is not flagged.
    pub fn resume(&mut self) {
        self.mm.tell_hook(true);
        if let Memory::Tracker(tracker) = &self.memory {
            mark_all(&self.mm, tracker.as_ref(), self.config.granule_order);
        }
        self.schedule.request();
    }

    /// How it works.
    pub fn config(&self) -> Config {
        self.config
    }

    /// When the next pass is due; to be waited for on whatever thread makes it.
    pub fn schedule(&self) -> &Arc<Schedule> {
        &self.schedule
    }

    /// Whether there may be something to report: then a pass is due within the delay.
    pub fn has_work(&self) -> bool {
        let marked = match &self.memory {
            Memory::Tracker(tracker) => tracker.has_work(),
            Memory::Lists => self.schedule.is_requested(),
        };
        marked || !self.late.is_empty()
    }

    /// Pages held for a report that was not acknowledged in time.
    pub fn withheld_pages(&self) -> u64 {
        pages(&self.late)
    }

    /// Bytes that it takes to remember what needs reporting, those in the frames not counted.
    pub fn tracker_bytes(&self) -> usize {
        match &self.memory {
            Memory::Tracker(tracker) => tracker.bytes(&self.mm),
            Memory::Lists => 0,
        }
    }

    /// Reports what needs it, as far as this pass goes, whether or not it is due.
    pub fn pass(&mut self, sink: &mut dyn ReportSink) -> PassStats {
        self.schedule.begin();
        let mut stats = PassStats::default();
        let mut again = !self.take_back(sink, &mut stats);
        if again {
            stats.failed = true;
        } else {
            let mut batch = Batch::new(self, sink);
            again = match &self.memory {
                Memory::Lists => self.mainline_pass(&mut batch),
                Memory::Tracker(tracker) => {
                    self.tracker_pass(tracker.as_ref(), &mut batch);
                    tracker.has_work()
                }
            };
            let Batch { stats: made, late, .. } = batch;
            stats += made;
            self.late = late;
        }
        self.schedule.end(again || !self.late.is_empty());
        stats
    }

    /// Makes the passes that are due until `end`, each when it is, and leaves `clock`, which is the
    /// reporter's, at `end`.
    pub fn run_until(
        &mut self,
        clock: &VirtualClock,
        end: Duration,
        sink: &mut dyn ReportSink,
    ) -> PassStats {
        let mut stats = PassStats::default();
        while let Some(due) = self.schedule.due().filter(|&due| due <= end) {
            clock.advance_to(due);
            stats += self.pass(sink);
            if self.config.delay.is_zero() {
                // What is left now would be due now, for ever.
                break;
            }
        }
        clock.advance_to(end);
        stats
    }

    /// Lets the pages of a report go whose acknowledgement was late; false if it has not come yet.
    fn take_back(&mut self, sink: &mut dyn ReportSink, stats: &mut PassStats) -> bool {
        if self.late.is_empty() {
            return true;
        }
        if !sink.settle() {
            return false;
        }
        let late = core::mem::take(&mut self.late);
        stats.late += 1;
        stats.reports += 1;
        stats.ranges += late.len() as u64;
        stats.pages += pages(&late);
        late.into_iter().for_each(|range| self.let_go(range, true));
        true
    }

    /// Lets held pages go again, `reported` or not.
    fn let_go(&self, range: PfnRange, reported: bool) {
        match (&self.memory, self.config.holding) {
            (Memory::Lists, Holding::Isolate) if reported => self.mm.undo_reported(range),
            (_, holding) => release(&self.mm, holding, range, reported),
        }
    }

    fn tracker_pass(&self, tracker: &dyn Tracker, batch: &mut Batch<'_>) {
        tracker.take(&self.mm, &mut |granule| self.visit(granule, tracker, batch));
        batch.submit(Some(tracker));
    }

    fn visit(&self, granule: Pfn, tracker: &dyn Tracker, batch: &mut Batch<'_>) -> Visit {
        if batch.stats.failed {
            return Visit::Stop;
        }
        batch.stats.offered += 1;
        match hold(&self.mm, &self.config, granule, self.config.granule_order) {
            Attempt::Held(range) => {
                tracker.unmark(range);
                batch.push(range);
                if batch.is_full() {
                    batch.submit(Some(tracker));
                }
                Visit::Held(range)
            }
            Attempt::NotFree => {
                batch.stats.not_free += 1;
                Visit::Done
            }
            Attempt::LostRace => {
                batch.stats.lost_race += 1;
                Visit::Done
            }
            Attempt::Busy => {
                batch.stats.busy += 1;
                match self.config.on_busy {
                    OnBusy::Requeue => Visit::Keep,
                    OnBusy::Drop => Visit::Done,
                }
            }
            Attempt::LowMemory => {
                batch.stats.low_memory += 1;
                // What is held is what the zone lacks: let it go first. Stopping here would begin
                // the next pass with the same pages, and never come to the others.
                if batch.held.is_empty() {
                    return Visit::Stop;
                }
                batch.submit(Some(tracker));
                self.visit(granule, tracker, batch)
            }
        }
    }
}

/// Marks all memory that is online.
fn mark_all(mm: &Mm, tracker: &dyn Tracker, granule_order: u8) {
    for section in (0..mm.section_count()).filter(|&section| mm.is_online(section)) {
        mm.geometry()
            .section_range(section)
            .step(granule_order)
            .for_each(|granule| tracker.mark(granule));
    }
}

/// Pages that are held, to be reported together.
pub(super) struct Batch<'a> {
    reporter: &'a Reporter,
    sink: &'a mut dyn ReportSink,
    pub(super) held: Vec<PfnRange>,
    /// What was held and stays so, since the host may have it still.
    late: Vec<PfnRange>,
    pub(super) stats: PassStats,
}

fn pages(ranges: &[PfnRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.pages())).sum()
}

impl<'a> Batch<'a> {
    pub(super) fn new(reporter: &'a Reporter, sink: &'a mut dyn ReportSink) -> Self {
        Self { reporter, sink, held: Vec::new(), late: Vec::new(), stats: PassStats::default() }
    }

    pub(super) fn capacity(&self) -> usize {
        self.sink.capacity().min(self.reporter.config.batch)
    }

    fn is_full(&self) -> bool {
        self.held.len() >= self.capacity()
    }

    pub(super) fn push(&mut self, range: PfnRange) {
        self.held.push(range);
        self.stats.most_held = self.stats.most_held.max(pages(&self.held));
    }

    /// Reports what is held and lets it go; what was not taken needs reporting still, and is marked
    /// if there is a tracker.
    pub(super) fn submit(&mut self, tracker: Option<&dyn Tracker>) {
        if self.held.is_empty() {
            return;
        }
        let Config { granule_order, acknowledge_timeout, on_timeout, .. } = self.reporter.config;
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
        for range in self.held.drain(..) {
            if let (Err(_), Some(tracker)) = (result, tracker) {
                range.step(granule_order).for_each(|granule| tracker.mark(granule));
            }
            self.reporter.let_go(range, result.is_ok());
        }
    }
}
