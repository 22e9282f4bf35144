// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod hotplug;
mod in_time;
mod isolation;
mod trackers;
mod zero_pages;
mod zones;

use super::*;
use crate::page_alloc::{
    AllocRequest, Geometry, IsolateMode, Layout, Mm, MovePages, Pfn, PfnRange, ZoneId,
};
use crate::random::Random;
use core::time::Duration;
use std::sync::Arc;

const G: Geometry = Geometry::LINUX;

/// Moves nothing.
struct Nobody;

impl MovePages for Nobody {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

/// Acknowledges everything and remembers it.
#[derive(Default)]
struct Host {
    reports: Vec<Vec<PfnRange>>,
    failing: Option<ReportError>,
}

impl Host {
    fn pages(&self) -> u64 {
        self.reports.iter().flatten().map(|range| u64::from(range.pages())).sum()
    }
}

impl ReportSink for Host {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        if let Some(error) = self.failing {
            return Err(error);
        }
        self.reports.push(ranges.to_vec());
        Ok(())
    }

    fn settle(&mut self) -> bool {
        true
    }

    fn capacity(&self) -> usize {
        32
    }
}

fn guest(sections: usize, config: Config) -> (Arc<Mm>, Reporter) {
    let mm = Arc::new(Mm::new(&Layout::flat(G, 2, sections)));
    let reporter = Reporter::new(Arc::clone(&mm), config).unwrap();
    (mm, reporter)
}

fn every_config() -> impl Iterator<Item = Config> {
    TrackerKind::ALL.iter().flat_map(|&tracker| {
        Holding::ALL.iter().map(move |&holding| Config { tracker, holding, ..Config::DEFAULT })
    })
}

/// Runs passes until there is nothing to do; how many it took.
fn settle(reporter: &mut Reporter, host: &mut Host) -> usize {
    (0..200).take_while(|_| reporter.has_work() && !reporter.pass(host).failed).count()
}

/// The closed form: a list of 8192 free blocks of order 10 has a budget of 16, so a
/// pass makes 17 calls of 32 blocks, and 16 passes report 32 GiB.
#[test]
fn mainline_needs_sixteen_passes_for_32_gib() {
    let config =
        Config { tracker: TrackerKind::ReportedFlag, holding: Holding::Pull, ..Config::DEFAULT };
    let (_, mut reporter) = guest(256, config);
    let mut host = Host::default();
    let mut passes = Vec::new();
    while reporter.has_work() {
        passes.push((reporter.pass(&mut host).pages * 4096) >> 20);
    }
    assert_eq!(passes.len(), 16, "{passes:?}");
    assert!(passes[..15].iter().all(|&mib| mib == 2176), "{passes:?}");
    assert_eq!(passes[15], 128);
}

#[test]
fn every_tracker_reports_free_memory_once() {
    for config in every_config() {
        let (mm, mut reporter) = guest(8, config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        mm.validate().unwrap();
        assert_eq!(host.pages(), 8 * 32768, "{config:?}");
        for _ in 0..5 {
            assert_eq!(reporter.pass(&mut host).reports, 0, "{config:?} on a quiet guest");
            assert!(!reporter.has_work(), "{config:?}");
        }
    }
}

/// A batch of 32 granules is more than the zone can spare at once.
#[test]
fn low_zone_is_reported_piece_by_piece() {
    for config in every_config().filter(|c| c.tracker != TrackerKind::ReportedFlag) {
        let (mm, mut reporter) = guest(1, config);
        for _ in 0..44 {
            mm.alloc(0, AllocRequest::movable(9)).unwrap();
        }
        mm.drain_all(ZoneId(0));
        let free = mm.zone(ZoneId(0)).free_pages();
        let mut host = Host::default();
        assert!(settle(&mut reporter, &mut host) < 3, "{config:?} does not come to rest");
        assert_eq!(host.pages(), free, "{config:?}");
    }
}

#[test]
fn freed_pages_are_reported_and_used_ones_are_not() {
    for config in every_config() {
        let (mm, mut reporter) = guest(8, config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        let taken: Vec<Pfn> =
            (0..40).map(|_| mm.alloc(0, AllocRequest::movable(9)).unwrap()).collect();
        host.reports.clear();
        let (kept, freed) = taken.split_at(20);
        freed.iter().for_each(|&pfn| mm.free(0, pfn));
        mm.drain_all(ZoneId(0));
        settle(&mut reporter, &mut host);
        let reported = |pfn: Pfn| host.reports.iter().flatten().any(|range| range.contains(pfn));
        assert!(freed.iter().all(|&pfn| reported(pfn)), "{config:?}");
        assert!(!kept.iter().any(|&pfn| reported(pfn)), "{config:?}");
        mm.validate().unwrap();
    }
}

#[test]
fn suspended_reporter_finds_frees_after_resume() {
    for config in every_config() {
        let (mm, mut reporter) = guest(8, config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        reporter.suspend();
        let taken = mm.alloc(0, AllocRequest::movable(10)).unwrap();
        mm.free(0, taken);
        assert!(!reporter.has_work(), "{config:?}");
        host.reports.clear();
        reporter.resume();
        settle(&mut reporter, &mut host);
        let found = host.reports.iter().flatten().any(|range| range.contains(taken));
        assert!(found, "{config:?}");
        mm.validate().unwrap();
    }
}

#[test]
fn pages_of_a_report_cannot_be_had_meanwhile() {
    /// Allocates all that there is while the host has the report.
    struct Greedy<'a>(&'a Mm, Vec<Pfn>);
    impl ReportSink for Greedy<'_> {
        fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
            while let Ok(pfn) = self.0.alloc(1, AllocRequest::movable(9)) {
                assert!(!ranges.iter().any(|range| range.contains(pfn)));
                self.1.push(pfn);
            }
            Ok(())
        }
        fn settle(&mut self) -> bool {
            true
        }
        fn capacity(&self) -> usize {
            32
        }
    }
    for config in every_config() {
        let (mm, mut reporter) = guest(4, config);
        let mut greedy = Greedy(&mm, Vec::new());
        reporter.pass(&mut greedy);
        assert!(!greedy.1.is_empty());
        mm.validate().unwrap();
    }
}

#[test]
fn block_of_another_isolator_stays_marked() {
    let block = PfnRange::block(Pfn(0), 9);
    for config in every_config().filter(|c| c.tracker != TrackerKind::ReportedFlag) {
        let (mm, mut reporter) = guest(2, config);
        mm.start_isolate_page_range(block, IsolateMode::Other).unwrap();
        let mut host = Host::default();
        for _ in 0..3 {
            reporter.pass(&mut host);
            assert!(reporter.has_work(), "{config:?}");
        }
        mm.undo_isolate_page_range(block, None);
        settle(&mut reporter, &mut host);
        assert!(host.reports.iter().flatten().any(|range| range.contains(Pfn(0))), "{config:?}");
    }
}

#[test]
fn a_refused_report_is_made_again() {
    for config in every_config() {
        let (mm, mut reporter) = guest(2, config);
        let mut host = Host { failing: Some(ReportError::Refused), ..Host::default() };
        assert!(reporter.pass(&mut host).failed);
        mm.validate().unwrap();
        assert_eq!(mm.zone(ZoneId(0)).free_pages(), 2 * 32768, "{config:?} let go of all");
        host.failing = None;
        // As in mainline, whose next pass follows the next free.
        // Isolating makes moves, which ask for one by themselves there.
        let forgets =
            (config.tracker, config.holding) == (TrackerKind::ReportedFlag, Holding::Pull);
        assert_eq!(reporter.has_work(), !forgets, "{config:?}");
        if forgets {
            let pfn = mm.alloc(0, AllocRequest::movable(10)).unwrap();
            mm.free(0, pfn);
        }
        settle(&mut reporter, &mut host);
        assert!(host.pages() >= 2 * 32768 - 512, "{config:?}: {}", host.pages());
    }
}

#[test]
fn pages_of_a_report_without_an_answer_stay_held() {
    for config in every_config() {
        let (mm, mut reporter) = guest(2, config);
        let mut host = Host { failing: Some(ReportError::Timeout), ..Host::default() };
        let stats = reporter.pass(&mut host);
        assert!(stats.failed && stats.most_held > 0);
        assert_eq!(reporter.withheld_pages(), stats.most_held);
        let free = mm.zone(ZoneId(0)).free_pages();
        assert_eq!(free, 2 * 32768 - stats.most_held, "{config:?}");
    }
}

#[test]
fn memory_that_comes_online_is_reported() {
    for config in every_config() {
        let (mm, mut reporter) = guest(4, config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        mm.offline_block(2, &Nobody, &|| false).unwrap();
        settle(&mut reporter, &mut host);
        host.reports.clear();
        mm.online_block(2).unwrap();
        settle(&mut reporter, &mut host);
        let section = G.section_range(2);
        let again: u32 = host
            .reports
            .iter()
            .flatten()
            .filter(|range| section.contains(range.start))
            .map(|range| range.pages())
            .sum();
        assert_eq!(again, 32768, "{config:?}");
    }
}

#[test]
fn the_bits_of_a_terabyte() {
    let mut layout = Layout::flat(G, 1, 64);
    layout.sections = 8192;
    let bytes = |tracker| {
        let mm = Arc::new(Mm::new(&layout));
        Reporter::new(mm, Config { tracker, ..Config::DEFAULT }).unwrap().tracker_bytes()
    };
    // A bit for each section that could be, and one for those that wait for memory.
    assert_eq!(bytes(TrackerKind::SectionBit), 2 * 1024);
    assert_eq!(bytes(TrackerKind::ZoneBitmap), 64 << 10);
    // A word for each section that is there, and a bit for each that could be.
    assert_eq!(bytes(TrackerKind::SectionBitmap), 64 * 8 + 1024);
    layout.zones[0].sections = core::iter::once(0..8192).collect();
    let mm = Arc::new(Mm::new(&Layout { geometry: G, ..layout }));
    let all = Config { tracker: TrackerKind::SectionBitmap, ..Config::DEFAULT };
    assert_eq!(Reporter::new(mm, all).unwrap().tracker_bytes(), (64 << 10) + 1024);
}

/// Under uniform churn a pass of `section-bit` reports
/// F S (1 - exp(-cT/S)) granules for cT that were freed.
#[test]
#[allow(clippy::cast_precision_loss)] // a ratio
fn duplicates_of_the_default_lie_on_the_closed_form() {
    const SECTIONS: u16 = 128;
    let (mm, mut reporter) = guest(usize::from(SECTIONS), Config::DEFAULT);
    let mut host = Host::default();
    settle(&mut reporter, &mut host);
    // Half of each section stays in use, so that F, the free granules of a section, is 32.
    let granules = f64::from(SECTIONS) * 64.0;
    let mut in_use: Vec<Pfn> = Vec::new();
    while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(9)) {
        in_use.push(pfn);
    }
    let mut random = Random(1);
    let mut free_half = |in_use: &mut Vec<Pfn>, n: usize| {
        for _ in 0..n {
            let pick = random.index(in_use.len());
            mm.free(0, in_use.swap_remove(pick));
        }
        mm.drain_all(ZoneId(0));
    };
    let half = in_use.len() / 2;
    free_half(&mut in_use, half);
    settle(&mut reporter, &mut host);
    for freed_a_pass in [16, 128, 512] {
        let (mut freed, mut reported, mut free_sum) = (0.0, 0.0, 0.0);
        for _ in 0..30 {
            free_half(&mut in_use, freed_a_pass);
            let free_now = granules - in_use.len() as f64;
            let pages = reporter.pass(&mut host).pages;
            freed += freed_a_pass as f64;
            reported += pages as f64 / 512.0;
            free_sum += free_now;
            // As many are allocated again, wherever the allocator likes: uniform are the frees.
            for _ in 0..freed_a_pass {
                in_use.push(mm.alloc(0, AllocRequest::movable(9)).unwrap());
            }
        }
        let sections = f64::from(SECTIONS);
        let per_section = free_sum / 30.0 / sections;
        let dirty = sections * (1.0 - (-(freed_a_pass as f64) / sections).exp());
        let expected = per_section * dirty / freed_a_pass as f64;
        let measured = reported / freed;
        let off = (measured / expected - 1.0).abs();
        assert!(off < 0.05, "{freed_a_pass}: {measured:.2} instead of {expected:.2}");
    }
}
