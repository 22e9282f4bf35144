//! The reporter's pass.

use std::sync::Arc;

use super::hold::{Attempt, hold, release};
use super::mainline::Requested;
use super::tracker::{self, Tracker, TrackerKind, Visit};
use super::{Config, OnBusy, ReportError, ReportSink};
use crate::mm::{Mm, Pfn, PfnRange};

/// Somebody reports free pages of this memory already (`-EBUSY` of `page_reporting_register`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("free pages of this memory are reported already")]
pub struct AlreadyRegistered;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassStats {
    /// Reports acknowledged.
    pub reports: u64,
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
    /// A report failed and the pass ended.
    pub failed: bool,
}

impl core::ops::AddAssign for PassStats {
    fn add_assign(&mut self, other: Self) {
        self.reports += other.reports;
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
}

/// How it is remembered what needs reporting.
enum Memory {
    /// Trackers A to D.
    Tracker(Arc<dyn Tracker>),
    /// E: on the free lists, and whether there may be something on them.
    Lists(Arc<Requested>),
}

impl Reporter {
    /// Registers a reporter. All memory that is free now needs reporting.
    ///
    /// # Errors
    /// [`AlreadyRegistered`] if the memory has one.
    pub fn new(mm: Arc<Mm>, config: Config) -> Result<Self, AlreadyRegistered> {
        let memory = match tracker::new(config.tracker, &mm, config.granule_order) {
            Some(tracker) => {
                mm.set_free_hook(Arc::clone(&tracker).hook()).map_err(|_| AlreadyRegistered)?;
                for section in (0..mm.section_count()).filter(|&section| mm.is_online(section)) {
                    let range = mm.geometry().section_range(section);
                    range.step(config.granule_order).for_each(|granule| tracker.mark(granule));
                }
                Memory::Tracker(tracker)
            }
            None => {
                let requested = Arc::new(Requested::new(config.granule_order));
                mm.set_free_hook(Arc::<Requested>::clone(&requested))
                    .map_err(|_| AlreadyRegistered)?;
                Memory::Lists(requested)
            }
        };
        Ok(Self { mm, config, memory })
    }

    /// How it works.
    pub fn config(&self) -> Config {
        self.config
    }

    /// Whether there may be something to report: then a pass is due within the delay.
    pub fn has_work(&self) -> bool {
        match &self.memory {
            Memory::Tracker(tracker) => tracker.has_work(),
            Memory::Lists(requested) => requested.is_set(),
        }
    }

    /// Bytes that it takes to remember what needs reporting, those in the frames not counted.
    pub fn tracker_bytes(&self) -> usize {
        match &self.memory {
            Memory::Tracker(tracker) => tracker.bytes(&self.mm),
            Memory::Lists(_) => 0,
        }
    }

    /// Reports what needs it, as far as this pass goes.
    pub fn pass(&mut self, sink: &mut dyn ReportSink) -> PassStats {
        match &self.memory {
            Memory::Lists(requested) => {
                let requested = Arc::clone(requested);
                self.mainline_pass(&requested, sink)
            }
            Memory::Tracker(tracker) => {
                let tracker = Arc::clone(tracker);
                self.tracker_pass(tracker.as_ref(), sink)
            }
        }
    }

    /// The pass of section 2.9 of the reference.
    fn tracker_pass(&self, tracker: &dyn Tracker, sink: &mut dyn ReportSink) -> PassStats {
        let mut batch = Batch::new(self, sink);
        tracker.take(&self.mm, &mut |granule| self.visit(granule, tracker, &mut batch));
        // A failure is in the statistics, and its pages are marked again.
        let _ = batch.submit(tracker);
        batch.stats
    }

    fn visit(&self, granule: Pfn, tracker: &dyn Tracker, batch: &mut Batch<'_>) -> Visit {
        batch.stats.offered += 1;
        match hold(&self.mm, &self.config, granule, self.config.granule_order) {
            Attempt::Held(range) => {
                tracker.unmark(range);
                batch.push(range);
                if batch.is_full() && batch.submit(tracker).is_err() {
                    return Visit::Stop;
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
                if batch.held.is_empty() || batch.submit(tracker).is_err() {
                    return Visit::Stop;
                }
                self.visit(granule, tracker, batch)
            }
        }
    }
}

/// Pages that are held, to be reported together.
pub(super) struct Batch<'a> {
    reporter: &'a Reporter,
    sink: &'a mut dyn ReportSink,
    pub(super) held: Vec<PfnRange>,
    pub(super) stats: PassStats,
}

impl<'a> Batch<'a> {
    pub(super) fn new(reporter: &'a Reporter, sink: &'a mut dyn ReportSink) -> Self {
        Self { reporter, sink, held: Vec::new(), stats: PassStats::default() }
    }

    pub(super) fn capacity(&self) -> usize {
        self.sink.capacity().min(self.reporter.config.batch)
    }

    fn is_full(&self) -> bool {
        self.held.len() >= self.capacity()
    }

    pub(super) fn push(&mut self, range: PfnRange) {
        self.held.push(range);
        let pages = self.held.iter().map(|range| u64::from(range.pages())).sum();
        self.stats.most_held = self.stats.most_held.max(pages);
    }

    /// Reports what is held and tells whether the host has it.
    pub(super) fn report(&mut self) -> Result<(), ReportError> {
        let result = self.sink.report(&self.held);
        match result {
            Ok(()) => {
                self.stats.reports += 1;
                self.stats.ranges += self.held.len() as u64;
                self.stats.pages += self.held.iter().map(|r| u64::from(r.pages())).sum::<u64>();
            }
            Err(_) => self.stats.failed = true,
        }
        result
    }

    /// Reports what is held and lets it go; what was not taken stays marked.
    fn submit(&mut self, tracker: &dyn Tracker) -> Result<(), ReportError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let result = self.report();
        let Config { holding, granule_order, .. } = self.reporter.config;
        // After a timeout the host may still discard the pages: they stay held for good.
        let give_up = result == Err(ReportError::Timeout);
        for range in self.held.drain(..) {
            if result.is_err() && !give_up {
                range.step(granule_order).for_each(|granule| tracker.mark(granule));
            }
            if !give_up {
                release(&self.reporter.mm, holding, range, result.is_ok());
            }
        }
        result
    }
}

impl TrackerKind {
    /// Its letter in message 002, with what is wrong with it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ZoneBitmap => "A",
            Self::ZoneBitmapUnordered => "A, marked before the page is free",
            Self::ZoneRcu => "B",
            Self::ZoneRcuNoGrace => "B, without a grace period",
            Self::SectionBitmap => "C",
            Self::SectionBitmapClearAfter => "C, meta bit cleared after the scan",
            Self::SectionBit => "D",
            Self::SectionBitClearAfter => "D, cleared after the scan",
            Self::SectionBitSelfTrigger => "D, triggered by isolation itself",
            Self::PageReported => "E",
        }
    }
}
