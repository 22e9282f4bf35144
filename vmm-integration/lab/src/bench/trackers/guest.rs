// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest over virtual time, and what the host knows of it.
//!
//! A block that is allocated is written, so the host holds it again; a granule (2 MiB) is given back
//! when it is reported. Time passes between steps of the programs, and while the host has a report:
//! then the programs go on. What the reporter itself computes takes no virtual time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use guest_driver::page_alloc::{AllocRequest, Geometry, Layout, Mm, Pfn, PfnRange, ZoneId};
use guest_driver::reporting::{ReportError, ReportSink};
use hdrhistogram::Histogram;

use super::churn::{Programs, SECOND, Step};
use crate::store::{CellState, MemoryMap};

/// Pages of a granule: of what the trackers count in.
pub(super) const GRANULE_ORDER: u8 = 9;
const GRANULE_PAGES: u32 = 1 << GRANULE_ORDER;
pub(super) const GRANULE_BYTES: u64 = 4096 << GRANULE_ORDER;
/// The programs run on one CPU, whose statistics are updated as often as Linux does.
const CPU: usize = 0;
const VMSTAT_EVERY: u64 = SECOND;
/// The most pages of one discarding call in virtual time: 32 MiB, as `--max-discard-call 32M`.
const CALL_PAGES: u64 = (32 << 20) / 4096;
/// Cells of a map at the most.
const MAP_CELLS: usize = 128;

/// How fast the host is.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostSpeed {
    /// A report there and back, in microseconds.
    pub(super) round_trip_us: u64,
    /// Giving back memory that is there, in bytes a second.
    pub(super) bytes_per_second: f64,
}

/// What is counted.
pub(super) struct Counts {
    /// Granules that became free, and of these those taken again before they were reported.
    pub(super) freed: u64,
    pub(super) reused: u64,
    /// Granules reported, and of these those that the host had already.
    pub(super) reported: u64,
    pub(super) duplicates: u64,
    /// Calls that discard what was reported, neighboring ranges of a chain as one.
    pub(super) host_calls: u64,
    /// From a granule's free to its acknowledged report, in microseconds.
    pub(super) back: Histogram<u64>,
    /// The most bytes in a report, and bytes times microseconds.
    pub(super) withheld_peak: u64,
    pub(super) withheld: f64,
    /// Allocations that found nothing.
    pub(super) failed: u64,
}

impl Counts {
    fn new() -> Result<Self> {
        Ok(Self {
            freed: 0,
            reused: 0,
            reported: 0,
            duplicates: 0,
            host_calls: 0,
            back: Histogram::new_with_bounds(1, 36_000 * SECOND, 3)?,
            withheld_peak: 0,
            withheld: 0.0,
            failed: 0,
        })
    }
}

/// A granule as host and programs know it.
#[derive(Clone, Copy, Default)]
struct Granule {
    /// Pages in use.
    used: u32,
    /// The host has it.
    given: bool,
    /// It is in a report that is under way.
    in_report: bool,
    /// When its last page was freed, if that was not reported yet.
    freed_at: Option<u64>,
}

/// The guest, which is the sink of its own reports.
pub(super) struct Guest {
    pub(super) mm: Arc<Mm>,
    pub(super) counts: Counts,
    pub(super) now: u64,
    pub(super) map: Option<MemoryMap>,
    programs: Option<Programs>,
    granules: Vec<Granule>,
    order: u8,
    host: HostSpeed,
    next_vmstat: u64,
}

impl Guest {
    /// A guest with `bytes` of memory, all free, whose programs use blocks of `order`.
    pub(super) fn new(bytes: u64, order: u8, host: HostSpeed) -> Result<Self> {
        let geometry = Geometry::LINUX;
        let sections = bytes.div_ceil(u64::from(geometry.section_pages()) * 4096);
        let sections = usize::try_from(sections)?;
        let granules = sections * geometry.section_blocks();
        Ok(Self {
            mm: Arc::new(Mm::new(&Layout::flat(geometry, 1, sections))),
            counts: Counts::new()?,
            now: 0,
            map: None,
            programs: None,
            granules: vec![Granule::default(); granules],
            order,
            host,
            next_vmstat: VMSTAT_EVERY,
        })
    }

    pub(super) fn sections(&self) -> usize {
        self.mm.section_count()
    }

    /// Takes blocks until `share` percent of memory are in use.
    pub(super) fn fill(&mut self, share: u64) -> Vec<Pfn> {
        let pages = self.granules.len() as u64 * u64::from(GRANULE_PAGES);
        let wanted = (pages * share / 100) >> self.order;
        (0..wanted).map_while(|_| self.allocate()).collect()
    }

    /// Everything from now on is counted, and `programs` begin.
    pub(super) fn begin(&mut self, programs: Programs) -> Result<()> {
        self.programs = Some(programs);
        self.counts = Counts::new()?;
        self.now = 0;
        self.next_vmstat = VMSTAT_EVERY;
        Ok(())
    }

    /// The programs stop where they are.
    pub(super) fn end(&mut self) {
        self.programs = None;
    }

    /// When something happens by itself next.
    pub(super) fn next_at(&self) -> u64 {
        let step = self.programs.as_ref().map_or(u64::MAX, Programs::next_at);
        step.min(self.next_vmstat)
    }

    /// Lets time pass, with what happens until then.
    pub(super) fn advance(&mut self, until: u64) {
        loop {
            let at = self.next_at();
            if at > until {
                break;
            }
            self.now = at;
            if at == self.next_vmstat {
                self.mm.update_vmstat(CPU);
                self.next_vmstat += VMSTAT_EVERY;
                continue;
            }
            let Some(programs) = &mut self.programs else { break };
            match programs.step() {
                Step::Free(block) => self.free(block),
                Step::Allocate => {
                    if let Some(block) = self.allocate()
                        && let Some(programs) = &mut self.programs
                    {
                        programs.took(block);
                    }
                }
                Step::Rest => {}
            }
        }
        self.now = until;
    }

    /// What is free goes where it can be reported.
    pub(super) fn drain(&self) {
        (0..self.mm.zone_count()).for_each(|zone| self.mm.drain_all(ZoneId(zone)));
    }

    pub(super) fn allocate(&mut self) -> Option<Pfn> {
        let Ok(block) = self.mm.alloc(CPU, AllocRequest::movable(self.order)) else {
            self.counts.failed += 1;
            return None;
        };
        for (granule, pages) in granules_of(PfnRange::block(block, self.order)) {
            let granule = &mut self.granules[granule];
            granule.used += pages;
            granule.given = false;
            if granule.freed_at.take().is_some() {
                self.counts.reused += 1;
            }
        }
        Some(block)
    }

    pub(super) fn free(&mut self, block: Pfn) {
        for (granule, pages) in granules_of(PfnRange::block(block, self.order)) {
            let granule = &mut self.granules[granule];
            granule.used -= pages;
            if granule.used == 0 {
                granule.freed_at = Some(self.now);
                self.counts.freed += 1;
            }
        }
        self.mm.free(CPU, block);
    }

    /// Free blocks that could be reported and that the host does not have, in granules.
    pub(super) fn lost_reports(&self) -> usize {
        let lost = |&(index, granule): &(usize, &Granule)| {
            let pfn = Pfn(u32::try_from(index).unwrap_or(0) * GRANULE_PAGES);
            !granule.given && self.is_free(pfn)
        };
        self.granules.iter().enumerate().filter(lost).count()
    }

    /// Whether the granule lies in a free block of at least its size.
    fn is_free(&self, granule: Pfn) -> bool {
        (GRANULE_ORDER..=self.mm.geometry().max_order).any(|order| {
            self.mm.state(granule.align_down(order)).buddy_order().is_some_and(|is| is >= order)
        })
    }

    /// Bytes in use, free, and given back.
    pub(super) fn bytes(&self) -> (u64, u64, u64) {
        let used: u64 = self.granules.iter().map(|g| u64::from(g.used) * 4096).sum();
        let given = self.granules.iter().filter(|g| g.given).count() as u64 * GRANULE_BYTES;
        (used, self.granules.len() as u64 * GRANULE_BYTES - used, given)
    }

    /// Adds a row to the map, if one is kept. What is in `held` is isolated.
    pub(super) fn map_row(&mut self, held: &[PfnRange]) {
        let Some(mut map) = self.map.take() else { return };
        let a_cell = self.granules.len().div_ceil(MAP_CELLS);
        let mut states: Vec<CellState> = self.granules.iter().map(|g| g.state()).collect();
        for (granule, _) in held.iter().flat_map(|range| granules_of(*range)) {
            states[granule] = CellState::Isolated;
        }
        let letter = |cell: &[CellState]| {
            // What most of it is; what lasts only a moment shows in any case.
            let most = CellState::ALL.into_iter().max_by_key(|state| {
                let count = cell.iter().filter(|is| *is == state).count();
                let brief = matches!(state, CellState::Isolated | CellState::Reported);
                if brief { count * cell.len() } else { count }
            });
            most.unwrap_or(CellState::Free).letter()
        };
        map.rows.push(states.chunks(a_cell).map(letter).collect());
        map.times_us.push(self.now);
        map.cell_bytes = a_cell as u64 * GRANULE_BYTES;
        self.map = Some(map);
    }
}

impl Granule {
    fn state(&self) -> CellState {
        match self {
            Self { in_report: true, .. } => CellState::Reported,
            Self { used: 1.., .. } => CellState::InUse,
            Self { given: true, .. } => CellState::GivenBack,
            _ => CellState::Free,
        }
    }
}

impl ReportSink for Guest {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        self.map_row(ranges);
        let all =
            || ranges.iter().flat_map(|range| granules_of(*range)).map(|(granule, _)| granule);
        let (mut granules, mut there) = (0_u64, 0_u64);
        for granule in all() {
            let granule = &mut self.granules[granule];
            granules += 1;
            there += u64::from(!granule.given);
            granule.in_report = true;
        }
        self.counts.reported += granules;
        self.counts.duplicates += granules - there;
        self.counts.host_calls += host_calls(ranges);
        // A hole costs next to nothing to punch again.
        let bytes = (there * GRANULE_BYTES) as f64;
        let punching = bytes / self.host.bytes_per_second * SECOND as f64;
        let took = self.host.round_trip_us + punching as u64;
        let withheld = granules * GRANULE_BYTES;
        self.counts.withheld_peak = self.counts.withheld_peak.max(withheld);
        self.counts.withheld += withheld as f64 * took as f64;
        let until = self.now + took;
        self.advance(self.now + took / 2);
        self.map_row(&[]);
        self.advance(until);
        for granule in all() {
            let granule = &mut self.granules[granule];
            granule.in_report = false;
            granule.given = true;
            if let Some(freed_at) = granule.freed_at.take() {
                self.counts.back.saturating_record(self.now - freed_at);
            }
        }
        Ok(())
    }

    /// None was ever late.
    fn settle(&mut self) -> bool {
        true
    }

    fn capacity(&self) -> usize {
        32
    }
}

/// Calls that the daemon makes for a chain: neighboring ranges as one, [`CALL_PAGES`] at most.
fn host_calls(ranges: &[PfnRange]) -> u64 {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| range.start);
    let runs = sorted.chunk_by(|range, next| range.end == next.start);
    let pages = runs.map(|run| run.iter().map(|range| u64::from(range.pages())).sum::<u64>());
    pages.map(|pages| pages.div_ceil(CALL_PAGES)).sum()
}

/// The granules that a range touches, each with how many of its pages.
fn granules_of(range: PfnRange) -> impl Iterator<Item = (usize, u32)> {
    let granules = range.start.0 / GRANULE_PAGES..range.end.0.div_ceil(GRANULE_PAGES);
    granules.map(move |granule| {
        let start = (granule * GRANULE_PAGES).max(range.start.0);
        let end = ((granule + 1) * GRANULE_PAGES).min(range.end.0);
        (granule as usize, end - start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_driver::reporting::{Config, Reporter};

    const SPEED: HostSpeed = HostSpeed { round_trip_us: 50, bytes_per_second: 5e9 };

    #[test]
    fn a_range_is_cut_into_granules() {
        let of = |start, end| {
            granules_of(PfnRange { start: Pfn(start), end: Pfn(end) }).collect::<Vec<_>>()
        };
        assert_eq!(of(0, 1024), [(0, 512), (1, 512)]);
        assert_eq!(of(512, 516), [(1, 4)]);
        assert_eq!(of(508, 516), [(0, 4), (1, 4)]);
    }

    #[test]
    fn host_call_takes_neighbors_up_to_its_limit() {
        let block = |granule: u32| PfnRange::block(Pfn(granule << 9), 9);
        assert_eq!(host_calls(&[]), 0);
        assert_eq!(host_calls(&[block(3), block(1), block(2), block(7)]), 2);
        let run: Vec<PfnRange> = (0..17).map(block).collect();
        assert_eq!(host_calls(&run), 2, "34 MiB");
    }

    #[test]
    fn untouched_report_is_duplicate_and_unreported_lost() {
        let mut guest = Guest::new(256 << 20, 9, SPEED).unwrap();
        let mut reporter = Reporter::new(Arc::clone(&guest.mm), Config::DEFAULT).unwrap();
        assert_eq!(guest.lost_reports(), 128, "nothing was reported yet");
        reporter.pass(&mut guest);
        assert_eq!((guest.counts.reported, guest.counts.duplicates), (128, 0));
        assert_eq!(guest.lost_reports(), 0);
        let blocks = guest.fill(25);
        guest.free(blocks[0]);
        guest.drain();
        assert_eq!(guest.lost_reports(), 1);
        guest.now += 7;
        reporter.pass(&mut guest);
        assert_eq!(guest.lost_reports(), 0);
        // Tracker D reports all of the section that is free.
        assert!(guest.counts.duplicates > 0);
        let took = guest.counts.back.max();
        assert!(took >= 57, "{took}");
        let (used, free, given) = guest.bytes();
        assert_eq!((used + free, given), (256 << 20, free));
    }
}
