// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod files;
mod huge_pages;
mod zeroed;

use super::*;
use crate::discard::{Cause, Ticket};
use proptest::prelude::*;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

const PAGE: u64 = 4096;

/// Writes down each call, and fails those that begin at an offset of its choice.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<(u64, u64)>>,
    failing: Option<u64>,
}

impl PunchHole for Recorder {
    fn punch_hole(&self, _file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.calls.lock().unwrap().push((offset, len));
        if self.failing == Some(offset) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        Ok(())
    }
}

impl<P: PunchHole> PunchHole for Arc<P> {
    fn punch_hole(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        (**self).punch_hole(file, offset, len)
    }
}

/// Guest memory of (guest page, pages) regions that lie one behind the other in one file,
/// `offset` pages from its start.
fn memory(regions: &[(u64, u64)], offset: u64) -> Arc<GuestMemory> {
    let file = tempfile::tempfile().unwrap();
    let pages: u64 = offset + regions.iter().map(|r| r.1).sum::<u64>();
    file.set_len(pages * PAGE).unwrap();
    let mut at = offset * PAGE;
    let mapped = regions.iter().map(|&(page, pages)| {
        let backing = FileOffset::new(file.try_clone().unwrap(), at);
        at += pages * PAGE;
        let len = usize::try_from(pages * PAGE).unwrap();
        let region = MmapRegion::from_file(backing, len).unwrap();
        GuestRegionMmap::new(region, GuestAddress(page * PAGE)).unwrap()
    });
    Arc::new(GuestMemory::from_regions(mapped.collect()).unwrap())
}

fn reclaimer(
    recorder: Recorder,
    memory: &Arc<GuestMemory>,
) -> (Reclaimer<Arc<Recorder>>, Arc<Recorder>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let recorder = Arc::new(recorder);
    let reclaimer = Reclaimer::new(
        Arc::clone(&recorder),
        MemoryOptions::default(),
        Arc::default(),
        Arc::clone(&counters),
    );
    reclaimer.set_memory(Arc::clone(memory)).unwrap();
    (reclaimer, recorder, counters)
}

fn ranges(list: &[(u64, u64)]) -> Vec<GuestRange> {
    list.iter().map(|&(start, len)| GuestRange::new(start, len).unwrap()).collect()
}

#[test]
fn adjacent_ranges_cost_one_call() {
    let (reclaimer, recorder, _) = reclaimer(Recorder::default(), &memory(&[(0, 64)], 3));
    let mut chain = ranges(&[(8 * PAGE, PAGE), (6 * PAGE, PAGE), (7 * PAGE, PAGE)]);
    assert_eq!(reclaimer.snapshot().discard(&mut chain), Discarded { bytes: 3 * PAGE, calls: 1 });
    assert_eq!(*recorder.calls.lock().unwrap(), [(9 * PAGE, 3 * PAGE)]);
}

#[test]
fn a_failing_call_loses_only_itself() {
    let failing = Recorder { failing: Some(4 * PAGE), ..Recorder::default() };
    let (reclaimer, _, counters) = reclaimer(failing, &memory(&[(0, 64)], 0));
    let mut chain = ranges(&[(4 * PAGE, PAGE), (8 * PAGE, PAGE)]);
    assert_eq!(reclaimer.snapshot().discard(&mut chain), Discarded { bytes: PAGE, calls: 2 });
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Failed), PAGE);
}

#[test]
fn after_stop_nothing_is_discarded() {
    let (reclaimer, recorder, counters) = reclaimer(Recorder::default(), &memory(&[(0, 8)], 0));
    reclaimer.stop();
    assert_eq!(reclaimer.snapshot().discard(&mut ranges(&[(0, PAGE)])), Discarded::default());
    assert!(recorder.calls.lock().unwrap().is_empty());
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Stopping), PAGE);
}

#[test]
fn a_long_range_is_cut_so_that_a_stop_is_heard() {
    let pages = 3 * MOST_BYTES_A_CALL / PAGE + 1;
    let (reclaimer, recorder, _) = reclaimer(Recorder::default(), &memory(&[(0, pages)], 0));
    let done = reclaimer.snapshot().discard(&mut ranges(&[(0, pages * PAGE)]));
    assert_eq!(done, Discarded { bytes: pages * PAGE, calls: 4 });
    assert_eq!(recorder.calls.lock().unwrap()[3], (3 * MOST_BYTES_A_CALL, PAGE));
}

#[test]
fn calls_keep_to_the_limit_of_the_operator() {
    for (limit, calls) in [(2 * PAGE, 4), (8 * PAGE, 1)] {
        let recorder = Arc::new(Recorder::default());
        let options = MemoryOptions { most_bytes_a_call: Some(limit), ..MemoryOptions::default() };
        let reclaimer =
            Reclaimer::new(Arc::clone(&recorder), options, Arc::default(), Arc::default());
        reclaimer.set_memory(memory(&[(0, 8)], 0)).unwrap();
        let done = reclaimer.snapshot().discard(&mut ranges(&[(0, 8 * PAGE)]));
        assert_eq!(done, Discarded { bytes: 8 * PAGE, calls });
        assert_eq!(recorder.calls.lock().unwrap()[0], (0, limit));
    }
}

#[test]
fn chain_interrupted_by_its_caller_counts_the_rest() {
    let pages = 2 * MOST_BYTES_A_CALL / PAGE;
    let (reclaimer, recorder, counters) = reclaimer(Recorder::default(), &memory(&[(0, pages)], 0));
    let mut chain = ranges(&[(0, 2 * PAGE), (4 * PAGE, PAGE), (6 * PAGE, MOST_BYTES_A_CALL)]);
    let wanted_after_two = || recorder.calls.lock().unwrap().len() < 2;
    let done =
        reclaimer.snapshot().discard_while(&mut chain, &mut Zeroed::default(), wanted_after_two);
    assert_eq!(done, Discarded { bytes: 3 * PAGE, calls: 2 });
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Yielded), MOST_BYTES_A_CALL);
}

/// A change of the memory table waits for the call under way, and not for the rest of its chain.
#[test]
fn table_change_during_a_chain_waits_for_one_call() {
    let (started, calls) = channel();
    let (finish, go_on) = channel();
    let counters = Arc::<Counters>::default();
    let slow = Slow { started, go_on: Mutex::new(go_on) };
    let (options, inhibit) = (MemoryOptions::default(), Arc::default());
    let reclaimer = Reclaimer::new(slow, options, inhibit, Arc::clone(&counters));
    reclaimer.set_memory(memory(&[(0, 8)], 0)).unwrap();
    std::thread::scope(|scope| {
        let mut chain = ranges(&[(0, PAGE), (4 * PAGE, PAGE)]);
        let reclaimer = &reclaimer;
        let worker = scope.spawn(move || reclaimer.snapshot().discard(&mut chain));
        calls.recv().unwrap();
        let control = scope.spawn(|| reclaimer.set_memory(memory(&[(0, 8)], 0)).unwrap());
        while !reclaimer.map.writer_waits() {
            std::thread::yield_now();
        }
        finish.send(()).unwrap();
        assert_eq!(worker.join().unwrap(), Discarded { bytes: PAGE, calls: 1 });
        control.join().unwrap();
    });
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Yielded), PAGE);
}

/// A call that takes as long as the test wants.
struct Slow {
    started: Sender<u64>,
    go_on: Mutex<Receiver<()>>,
}

impl PunchHole for Slow {
    fn punch_hole(&self, _file: &File, offset: u64, _len: u64) -> io::Result<()> {
        self.started.send(offset).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        Ok(())
    }
}

/// Forbids something in the middle of the first of two calls. What is forbidden must be answered
/// after that call and before the next, and the answer must hold.
fn forbid_during_a_call(forbid: impl FnOnce(&Inhibit) -> Ticket + Send, left: SkipReason) {
    let (started, calls) = channel();
    let (finish, go_on) = channel();
    let (answer, answered) = channel();
    let (inhibit, counters) = (Arc::<Inhibit>::default(), Arc::<Counters>::default());
    let slow = Slow { started, go_on: Mutex::new(go_on) };
    let options = MemoryOptions::default();
    let reclaimer = Reclaimer::new(slow, options, Arc::clone(&inhibit), Arc::clone(&counters));
    reclaimer.set_memory(memory(&[(0, 8)], 0)).unwrap();
    std::thread::scope(|scope| {
        let worker = scope
            .spawn(|| reclaimer.snapshot().discard(&mut ranges(&[(0, PAGE), (4 * PAGE, PAGE)])));
        assert_eq!(calls.recv().unwrap(), 0);
        scope.spawn(|| {
            inhibit.wait(forbid(&inhibit));
            answer.send(()).unwrap();
        });
        while !inhibit.is_waited_for() {
            std::thread::yield_now();
        }
        // Never while the call is under way.
        assert!(answered.try_recv().is_err());
        finish.send(()).unwrap();
        answered.recv().unwrap();
        assert_eq!(worker.join().unwrap(), Discarded { bytes: PAGE, calls: 1 });
    });
    assert_eq!(counters.snapshot().skipped_bytes(left), PAGE);
}

#[test]
fn pause_during_a_call_takes_effect_before_the_next() {
    forbid_during_a_call(|inhibit| inhibit.forbid(Cause::Operator), SkipReason::Paused);
    forbid_during_a_call(|inhibit| inhibit.forbid(Cause::Migration), SkipReason::Migrating);
}

#[test]
fn pin_during_a_call_takes_effect_before_the_next() {
    let pin = |inhibit: &Inhibit| inhibit.pin(GuestRange::new(4 * PAGE, 1).unwrap()).unwrap();
    forbid_during_a_call(pin, SkipReason::Pinned);
}

#[test]
fn a_pinned_byte_keeps_its_page_and_no_other() {
    let (reclaimer, recorder, counters) = reclaimer(Recorder::default(), &memory(&[(8, 64)], 3));
    let _ = reclaimer.inhibit.pin(GuestRange::new(20 * PAGE - 1, 2).unwrap()).unwrap();
    let mut chain = ranges(&[(8 * PAGE, 64 * PAGE)]);
    let done = reclaimer.snapshot().discard(&mut chain);
    assert_eq!(done, Discarded { bytes: 62 * PAGE, calls: 2 });
    assert_eq!(*recorder.calls.lock().unwrap(), [(3 * PAGE, 11 * PAGE), (16 * PAGE, 51 * PAGE)]);
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Pinned), 2 * PAGE);
}

/// Guest memory of (guest page, pages, file page) regions of one file.
fn overlapping(regions: &[(u64, u64, u64)]) -> Arc<GuestMemory> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 * PAGE).unwrap();
    let mapped = regions.iter().map(|&(page, pages, file_page)| {
        let backing = FileOffset::new(file.try_clone().unwrap(), file_page * PAGE);
        let region = MmapRegion::from_file(backing, usize::try_from(pages * PAGE).unwrap());
        GuestRegionMmap::new(region.unwrap(), GuestAddress(page * PAGE)).unwrap()
    });
    Arc::new(GuestMemory::from_regions(mapped.collect()).unwrap())
}

/// Rings that a test places.
#[derive(Default)]
struct Places {
    version: AtomicU64,
    ranges: Mutex<Vec<GuestRange>>,
}

impl Places {
    fn set(&self, places: &[(u64, u64)]) {
        *self.ranges.lock().unwrap() = ranges(places);
        self.version.fetch_add(1, Ordering::Relaxed);
    }
}

impl InUse for Places {
    fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    fn ranges(&self) -> Vec<GuestRange> {
        self.ranges.lock().unwrap().clone()
    }
}

/// Each guest page of `chain` that a discard asks the kernel for, in file pages.
fn calls(recorder: &Recorder) -> Vec<u64> {
    let calls = std::mem::take(&mut *recorder.calls.lock().unwrap());
    let mut pages: Vec<u64> =
        calls.iter().flat_map(|(at, len)| at / PAGE..(at + len) / PAGE).collect();
    pages.sort_unstable();
    pages
}

#[test]
fn pinned_page_is_kept_at_all_addresses_and_tables() {
    // Guest pages 0 to 7 and 100 to 107 are the same; 200 is another file.
    let both = overlapping(&[(0, 8, 0), (100, 8, 0)]);
    let (reclaimer, recorder, counters) = reclaimer(Recorder::default(), &both);
    let _ = reclaimer.inhibit.pin(GuestRange::new(2 * PAGE, PAGE).unwrap()).unwrap();
    let discard = || reclaimer.snapshot().discard(&mut ranges(&[(100 * PAGE, 8 * PAGE)]));
    discard();
    assert_eq!(calls(&recorder), [0, 1, 3, 4, 5, 6, 7]);
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Pinned), PAGE);
    // The pinned address is another part of the file now, and then no memory.
    reclaimer.set_memory(overlapping(&[(0, 2, 4), (2, 2, 6), (100, 8, 0)])).unwrap();
    discard();
    assert_eq!(calls(&recorder), [0, 1, 2, 3, 4, 5, 7]);
    reclaimer.set_memory(overlapping(&[(100, 8, 0)])).unwrap();
    discard();
    assert_eq!(calls(&recorder), [0, 1, 2, 3, 4, 5, 6, 7]);
    reclaimer.set_memory(both).unwrap();
    reclaimer.inhibit.unpin(GuestRange::new(2 * PAGE, PAGE).unwrap()).unwrap();
    discard();
    assert_eq!(calls(&recorder), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn page_with_a_ring_is_kept_at_every_address() {
    let both = overlapping(&[(0, 8, 0), (100, 8, 0)]);
    let (reclaimer, recorder, counters) = reclaimer(Recorder::default(), &both);
    let places = Arc::new(Places::default());
    let reclaimer = reclaimer.keeping(Arc::clone(&places) as _);
    let discard = |page| reclaimer.snapshot().discard(&mut ranges(&[(page, 8 * PAGE)]));
    // One byte of a page, and what is no memory.
    places.set(&[(4 * PAGE - 1, 2), (50 * PAGE, PAGE)]);
    for page in [0, 100 * PAGE] {
        discard(page);
        assert_eq!(calls(&recorder), [0, 1, 2, 5, 6, 7]);
    }
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Ring), 4 * PAGE);
    // Pinned comes first where a page is both.
    let _ = reclaimer.inhibit.pin(GuestRange::new(103 * PAGE, 1).unwrap()).unwrap();
    places.set(&[(3 * PAGE, 1), (106 * PAGE, 1)]);
    discard(0);
    assert_eq!(calls(&recorder), [0, 1, 2, 4, 5, 7]);
    places.set(&[]);
    discard(0);
    assert_eq!(calls(&recorder), [0, 1, 2, 4, 5, 6, 7]);
}

proptest! {
    /// Against a reference that goes page by page: a page is discarded, once, exactly if every
    /// byte of it was reported, it is guest memory and no byte of it is pinned; every reported byte
    /// is accounted for.
    #[test]
    fn discards_what_a_page_by_page_reference_would(
        chain in prop::collection::vec((0u64..60 * PAGE, 1u64..20 * PAGE), 0..12),
        pins in prop::collection::vec((0u64..60 * PAGE, 1u64..5 * PAGE), 0..4),
        offset in 0u64..4,
    ) {
        // Two regions that touch, a hole, and a third.
        let layout = [(2, 10), (12, 5), (30, 20)];
        let (reclaimer, recorder, counters) =
            reclaimer(Recorder::default(), &memory(&layout, offset));
        let (mut chain, pins) = (ranges(&chain), ranges(&pins));
        for pin in &pins {
            let _ = reclaimer.inhibit.pin(*pin).unwrap();
        }
        let pinned = |byte: u64| pins.iter().any(|r| r.start() <= byte && byte < r.end());
        let reported = |byte: u64| chain.iter().any(|r| r.start() <= byte && byte < r.end());
        let mut expected = Vec::new();
        let mut file_page = offset;
        for (page, pages) in layout {
            for page in page..page + pages {
                let mut bytes = page * PAGE..(page + 1) * PAGE;
                if bytes.clone().all(reported) && !bytes.any(pinned) {
                    expected.push(file_page);
                }
                file_page += 1;
            }
        }
        let named: u64 = chain.iter().map(GuestRange::len).sum();
        let done = reclaimer.snapshot().discard(&mut chain);
        let mut got: Vec<u64> = recorder.calls.lock().unwrap().iter()
            .flat_map(|(at, len)| at / PAGE..(at + len) / PAGE).collect();
        got.sort_unstable();
        prop_assert_eq!(got, expected);
        let snapshot = counters.snapshot();
        prop_assert_eq!(snapshot.bytes_discarded, done.bytes);
        prop_assert_eq!(named, done.bytes + snapshot.all_skipped_bytes());
    }
}
