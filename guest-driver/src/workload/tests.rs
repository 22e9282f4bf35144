// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workloads on a small guest.

use super::*;
use crate::page_alloc::{Geometry, Layout, PfnRange, ZoneId, ZoneType};
use crate::ram::{Gpa, RamError};
use crate::reporting::{self, Clock, PassStats, ReportError, ReportSink, Reporter, VirtualClock};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Memory of which every 4 KiB page has a lock of its own.
struct Pages(Vec<Mutex<Vec<u8>>>);

impl GuestRam for Pages {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
        for (i, part) in into.chunks_mut(4096).enumerate() {
            let page = self.0[usize::try_from(at.0 >> 12).unwrap() + i].lock().unwrap();
            part.copy_from_slice(&page[..part.len()]);
        }
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
        for (i, part) in from.chunks(4096).enumerate() {
            let mut page = self.0[usize::try_from(at.0 >> 12).unwrap() + i].lock().unwrap();
            page[..part.len()].copy_from_slice(part);
        }
        Ok(())
    }

    // No ring is in this memory.
    fn load_u16(&self, at: Gpa, _: Ordering) -> Result<u16, RamError> {
        Err(RamError::OutOfRange { at, len: 2 })
    }

    fn store_u16(&self, at: Gpa, _: u16, _: Ordering) -> Result<(), RamError> {
        Err(RamError::OutOfRange { at, len: 2 })
    }
}

/// Work that has not begun after that will not.
const LONGEST: Duration = Duration::from_secs(60);

const SMALL: Geometry = Geometry { section_order: 10, ..Geometry::LINUX };

fn small() -> (Mm, Pages) {
    let mm = Mm::new(&Layout::flat(SMALL, 3, 4));
    let pages = (0..4096).map(|_| Mutex::new(vec![0; 4096])).collect();
    (mm, Pages(pages))
}

fn config(behaviour: Behaviour) -> Config {
    Config { cpus: 2, behaviour, order: 2, pages_a_cpu: 600, seed: 1 }
}

#[test]
fn every_behaviour_beside_an_offliner_loses_nothing() {
    use Behaviour::*;
    for behaviour in [Churn, Memhog, PageFault, Fragment] {
        let (mm, ram) = small();
        let workload = Workload::new(&mm, &ram, config(behaviour));
        let stop = AtomicBool::new(false);
        let offlined = std::thread::scope(|scope| {
            let run = scope.spawn(|| workload.run(&stop));
            let (began, mut offlined, mut used) = (Instant::now(), 0, false);
            // Long enough for both to have met, however the scheduler likes it.
            let enough = |offlined, used, now: Duration| {
                (offlined > 0 && used && now > Duration::from_millis(300)) || now > LONGEST
            };
            while !enough(offlined, used, began.elapsed()) && !run.is_finished() {
                used |= mm.zone(ZoneId(0)).free_pages() < 4096;
                let late = Instant::now() + Duration::from_millis(50);
                let give_up = || Instant::now() > late;
                if mm.offline_block(3, workload.slots(), &give_up).is_ok() {
                    offlined += 1;
                    mm.online_block(3).unwrap();
                }
            }
            stop.store(true, Ordering::Relaxed);
            let done = run.join().unwrap().unwrap();
            assert!(done.freed > 0 && done.freed == done.allocated, "{done:?}");
            offlined
        });
        assert!(offlined > 0, "{behaviour:?}: the block never went offline");
        mm.drain_all(ZoneId(0));
        mm.validate().unwrap();
        assert_eq!(mm.zone(ZoneId(0)).free_pages(), 4096);
    }
}

#[test]
fn a_lost_word_is_found_with_the_history_of_its_page() {
    let (mm, ram) = small();
    let workload = Workload::new(&mm, &ram, config(Behaviour::Churn));
    assert!(workload.blocks.fill(0, 0, AllocRequest::movable(0)));
    let pfn = workload.slots().pfn(0).unwrap();
    ram.write(Gpa(pfn.address() + 4088), &[0; 8]).unwrap();
    let lost = workload.blocks.check_and_free(0, 0).unwrap_err();
    assert_eq!((lost.pfn, lost.found), (pfn, 0));
    assert_eq!(lost.history, [Event::Allocated { cpu: 0, pfn, order: 0, generation: 1 }]);
}

/// A normal zone, which has room for unmovable pages too.
fn normal(ram_pages: usize) -> (Arc<Mm>, Pages) {
    let mut layout = Layout::flat(SMALL, 3, ram_pages / 1024);
    layout.zones[0].kind = ZoneType::Normal;
    let pages = (0..ram_pages).map(|_| Mutex::new(vec![0; 4096])).collect();
    (Arc::new(Mm::new(&layout)), Pages(pages))
}

const BUILD: Build =
    Build { cpus: 2, jobs: 30, peak_pages: 3000, pause: Duration::from_secs(5), seed: 3 };

fn all_is_free(mm: &Mm) {
    mm.drain_all(ZoneId(0));
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), mm.zone(ZoneId(0)).managed_pages());
}

/// A host that takes contents at once.
struct Discards<'a>(&'a Pages);

impl ReportSink for Discards<'_> {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        for pfn in ranges.iter().flat_map(|range| range.step(0)) {
            self.0.write(Gpa(pfn.address()), &[0; 4096]).unwrap();
        }
        Ok(())
    }

    fn settle(&mut self) -> bool {
        unreachable!("it is never late")
    }

    fn capacity(&self) -> usize {
        32
    }
}

#[test]
fn a_replay_with_threads_loses_no_byte() {
    let trace = compile_like(BUILD);
    let allocs = trace.events().len() as u64 / 2;
    let (mm, ram) = normal(4096);
    let done = Replay::new(&mm, &ram, &trace).run(Pace::Fast).unwrap();
    assert_eq!((done.allocated, done.freed, done.failed), (allocs, allocs, 0));
    assert!(done.verified_bytes > allocs * 4096);
    all_is_free(&mm);
}

#[test]
fn replay_waits_for_frees_of_other_cpus() {
    let trace: Trace = "0 0 alloc 1 3\n20000 1 free 1\n20000 1 alloc 1 0 unmovable\n\
                        30000 0 free 1\n30000 1 alloc 2 9"
        .parse()
        .unwrap();
    for pace in [Pace::Fast, Pace::Recorded] {
        let (mm, ram) = normal(2048);
        let started = Instant::now();
        let done = Replay::new(&mm, &ram, &trace).run(pace).unwrap();
        assert!(pace == Pace::Fast || started.elapsed() >= trace.duration());
        // The last block is freed at the end.
        assert_eq!((done.allocated, done.freed, done.failed), (3, 3, 0));
        all_is_free(&mm);
    }
}

#[test]
fn replay_in_virtual_time_repeats_exactly() {
    let trace = compile_like(BUILD);
    let run = || {
        let (mm, ram) = normal(4096);
        let clock = Arc::new(VirtualClock::new());
        let config = reporting::Config::DEFAULT;
        let mut reporter =
            Reporter::with_clock(Arc::clone(&mm), config, Arc::clone(&clock) as _).unwrap();
        let mut stats = PassStats::default();
        let mut host = Discards(&ram);
        let replay = Replay::new(&mm, &ram, &trace);
        let done =
            replay.run_in_steps(|at| stats += reporter.run_until(&clock, at, &mut host)).unwrap();
        assert_eq!(clock.now(), trace.duration());
        mm.drain_all(ZoneId(0));
        let end = trace.duration() + config.delay * 2;
        stats += reporter.run_until(&clock, end, &mut host);
        assert_eq!(reporter.schedule().due(), None, "all is reported, and quiet");
        assert!(stats.pages > 4096, "no more than what was free at the start: {stats:?}");
        all_is_free(&mm);
        (done, stats)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_byte_that_is_lost_during_a_replay_is_found() {
    let trace = compile_like(BUILD);
    let (mm, ram) = normal(4096);
    let mut events = 0;
    let result = Replay::new(&mm, &ram, &trace).run_in_steps(|_| {
        events += 1;
        if events == 500 {
            // All of them, those in use among them.
            ram.0.iter().for_each(|page| page.lock().unwrap().fill(0));
        }
    });
    let lost = result.unwrap_err();
    assert_eq!(lost.found, 0);
    assert!(!lost.history.is_empty());
}
