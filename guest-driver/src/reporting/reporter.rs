// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter, and its pass.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::batch::{Batch, PassStats, pages};
use super::clock::{Clock, RealClock, VirtualClock};
use super::config::{Config, OnBusy, ZeroReports};
use super::hold::{Attempt, hold, release};
use super::schedule::Schedule;
use super::sink::ReportSink;
use super::tracker::growing::{Growing, Room};
use super::tracker::marks::{Marks, Visit};
use super::tracker::{self, Tracker};
use crate::page_alloc::{Mm, Pfn, PfnRange, ZoneId};

/// Free pages of this memory are reported already (`-EBUSY` of `page_reporting_register`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("free pages of this memory are reported already")]
pub struct AlreadyRegistered;

/// What a tracker remembers.
#[derive(Clone)]
pub struct Memory(Option<Arc<dyn Marks>>);

impl Memory {
    /// Whether anything of a section is marked. What frames remember by themselves goes with them.
    pub fn has_section(&self, section: usize) -> bool {
        self.0.as_ref().is_some_and(|marks| marks.remembers(section))
    }
}

/// Finds and reports free pages of one guest.
pub struct Reporter {
    mm: Arc<Mm>,
    config: Config,
    tracker: Tracker,
    schedule: Arc<Schedule>,
    /// Of a tracker that grows.
    room: Option<Arc<Room>>,
    /// Pages of a report that was not acknowledged in time: held, and the host's.
    late: Vec<PfnRange>,
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
        let tracker = tracker::new(&config, &mm, passes);
        let room = config.grows.then(|| Arc::new(Room::new(&mm)));
        let hook = match &room {
            None => tracker.hook(),
            Some(room) => Arc::new(Growing {
                tracker: tracker.hook(),
                room: Arc::clone(room),
                section_order: mm.geometry().section_order,
            }),
        };
        mm.set_free_hook(hook).map_err(|_| AlreadyRegistered)?;
        if config.zero_reports != ZeroReports::None {
            mm.remember_zero_pages();
        }
        let reporter = Self { mm, config, tracker, schedule, room, late: Vec::new() };
        reporter.mark_all();
        Ok(reporter)
    }

    /// Stops reporting: the hook no longer sees frees, as if there were no device
    /// (`page_reporting_unregister`).
    pub fn suspend(&mut self) {
        self.mm.enable_hook(false);
    }

    /// Resumes reporting. Frees in between are unknown, so all free memory needs reporting; with
    /// [`TrackerKind::ReportedFlag`](crate::reporting::TrackerKind::ReportedFlag) all that is not flagged.
    pub fn resume(&mut self) {
        self.mm.enable_hook(true);
        self.mark_all();
        self.schedule.request();
    }

    /// What was chosen.
    pub fn config(&self) -> Config {
        self.config
    }

    /// When the next pass is due, for the thread that makes it to wait for.
    pub fn schedule(&self) -> &Arc<Schedule> {
        &self.schedule
    }

    /// Whether a pass may find something to report: then one is due within the delay. Free memory of
    /// a zone at its low watermark is no work until the zone recovers.
    pub fn has_work(&self) -> bool {
        !self.schedule.is_idle() || !self.late.is_empty()
    }

    /// What the tracker remembers, for others to ask while the reporter works.
    pub fn memory(&self) -> Memory {
        Memory(match &self.tracker {
            Tracker::Marks(marks) => Some(Arc::clone(marks)),
            Tracker::Flags(_) => None,
        })
    }

    /// Pages held for a report that was not acknowledged in time.
    pub fn withheld_pages(&self) -> u64 {
        pages(&self.late)
    }

    /// Bytes that it takes to remember what needs reporting, those in the frames not counted.
    pub fn tracker_bytes(&self) -> usize {
        match &self.tracker {
            Tracker::Marks(marks) => marks.bytes(&self.mm),
            Tracker::Flags(_) => 0,
        }
    }

    /// Makes a pass, whether or not it is due.
    pub fn pass(&mut self, sink: &mut dyn ReportSink) -> PassStats {
        self.schedule.begin();
        let mut stats = PassStats::default();
        let mut again = !self.take_back(sink, &mut stats);
        if again {
            stats.failed = true;
        } else {
            let mut batch = Batch::new(&self.mm, self.config, sink);
            again = match &self.tracker {
                Tracker::Flags(flags) => flags.pass(&mut batch),
                Tracker::Marks(marks) => self.marks_pass(marks.as_ref(), &mut batch),
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
                // What is left now would be due now, without end.
                break;
            }
        }
        clock.advance_to(end);
        stats
    }

    /// Releases the pages of a report whose acknowledgement was late; false if it is still missing.
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
        late.into_iter().for_each(|range| release(&self.mm, &self.config, range, true));
        true
    }

    /// Makes a pass by marks; true if another one must follow.
    fn marks_pass(&self, marks: &dyn Marks, batch: &mut Batch<'_>) -> bool {
        let mut left = false;
        let mut low: Vec<Option<u64>> = vec![None; self.mm.zone_count()];
        let walk = self.room.as_ref().map(|room| room.walk());
        marks.take(&self.mm, &mut |granule| {
            let visit = self.visit(granule, marks, batch, &mut low);
            left |= matches!(visit, Visit::Keep | Visit::Stop);
            visit
        });
        drop(walk);
        batch.submit(Some(marks));
        // What a zone cannot spare waits until it can. Nothing is held any more, so that a zone which
        // has recovered meanwhile is seen here.
        for (zone, wanted) in low.into_iter().enumerate() {
            left |= wanted.is_some_and(|pages| !self.mm.await_spare_pages(ZoneId(zone), pages));
        }
        left || batch.stats.failed
    }

    fn visit(
        &self,
        granule: Pfn,
        marks: &dyn Marks,
        batch: &mut Batch<'_>,
        low: &mut [Option<u64>],
    ) -> Visit {
        if batch.stats.failed {
            return Visit::Stop;
        }
        batch.stats.offered += 1;
        match hold(&self.mm, &self.config, granule, self.config.granule_order) {
            Attempt::Held(range) => {
                marks.unmark(range);
                batch.push(range);
                if batch.is_full() {
                    batch.submit(Some(marks));
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
            Attempt::LowMemory { zone, pages } => {
                batch.stats.low_memory += 1;
                // What is held may be what the zone lacks: release it first.
                if !batch.held.is_empty() {
                    batch.submit(Some(marks));
                    return self.visit(granule, marks, batch, low);
                }
                // Other blocks may be smaller, or of other zones.
                let least = &mut low[zone.0];
                *least = Some(least.map_or(pages, |least| least.min(pages)));
                Visit::Wait
            }
        }
    }

    /// Marks all memory that is online, where there are marks.
    fn mark_all(&self) {
        let Tracker::Marks(marks) = &self.tracker else { return };
        let online = (0..self.mm.section_count()).filter(|&section| self.mm.is_online(section));
        for section in online {
            let range = self.mm.geometry().section_range(section);
            let granules = range.step(self.config.granule_order);
            granules.for_each(|granule| marks.mark(&self.mm, granule));
        }
    }
}
