// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a chain may be told to be zero: what a call has discarded, and nothing else.

use super::*;
use crate::discard::Zeroed;
use std::cell::Cell;

const CALL: u64 = 2 << 20;

/// Two regions of one memfd from address 0 and from 1 GiB on, `pages` pages each.
fn memory_of_memfd(pages: u64) -> Arc<GuestMemory> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(2 * pages * PAGE).unwrap();
    let len = usize::try_from(pages * PAGE).unwrap();
    let region = |gpa, offset| {
        let backing = FileOffset::new(file.try_clone().unwrap(), offset);
        let mapped = MmapRegion::from_file(backing, len).unwrap();
        GuestRegionMmap::new(mapped, GuestAddress(gpa)).unwrap()
    };
    let regions = vec![region(0, 0), region(1 << 30, pages * PAGE)];
    Arc::new(GuestMemory::from_regions(regions).unwrap())
}

fn range(start: u64, len: u64) -> GuestRange {
    GuestRange::new(start, len).unwrap()
}

#[test]
fn failed_call_leaves_its_range_unclaimed() {
    let recorder = Recorder { failing: Some(CALL), ..Recorder::default() };
    let (reclaimer, _, _) = reclaimer(recorder, &memory_of_memfd(4 * CALL / PAGE));
    let mut zeroed = Zeroed::default();
    reclaimer.snapshot().discard_while(&mut ranges(&[(0, 3 * CALL)]), &mut zeroed, || true);
    assert!(zeroed.covers(range(0, CALL)) && zeroed.covers(range(2 * CALL, CALL)));
    assert!(!zeroed.covers(range(CALL, 1)) && !zeroed.covers(range(2 * CALL - 1, 1)));
}

#[test]
fn chain_stopped_between_calls_is_claimed_up_to_there() {
    let (reclaimer, _, _) = reclaimer(Recorder::default(), &memory_of_memfd(4 * CALL / PAGE));
    let (mut zeroed, left) = (Zeroed::default(), Cell::new(2));
    let going = || left.replace(left.get() - 1) > 0;
    reclaimer.snapshot().discard_while(&mut ranges(&[(0, 4 * CALL)]), &mut zeroed, going);
    assert!(zeroed.covers(range(0, 2 * CALL)) && !zeroed.covers(range(2 * CALL, 1)));
    // The end of the session.
    reclaimer.stop();
    zeroed.clear();
    reclaimer.snapshot().discard_while(&mut ranges(&[(0, CALL)]), &mut zeroed, || true);
    assert!(!zeroed.covers(range(0, 1)));
}

#[test]
fn file_on_a_disk_is_never_claimed() {
    let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let file = tempfile::tempfile_in(directory).unwrap();
    file.set_len(4 * PAGE).unwrap();
    let mapped = MmapRegion::from_file(FileOffset::new(file, 0), 4 * 4096).unwrap();
    let region = GuestRegionMmap::new(mapped, GuestAddress(0)).unwrap();
    let memory = Arc::new(GuestMemory::from_regions(vec![region]).unwrap());
    let (reclaimer, _, _) = reclaimer(Recorder::default(), &memory);
    let mut zeroed = Zeroed::default();
    reclaimer.snapshot().discard_while(&mut ranges(&[(0, 4 * PAGE)]), &mut zeroed, || true);
    assert!(!zeroed.covers(range(0, 1)));
}

proptest! {
    #[test]
    fn claims_are_what_successful_calls_have_discarded(
        chain in prop::collection::vec((0u64..40, 0u64..4096, 1u64..40_000, any::<bool>()), 1..8),
        pins in prop::collection::vec(0u64..40, 0..3),
        failing in prop::option::of(0u64..64),
    ) {
        const PAGES: u64 = 32;
        let recorder = Recorder { failing: failing.map(|page| page * PAGE), ..Recorder::default() };
        let memory = memory_of_memfd(PAGES);
        let (reclaimer, recorder, _) = reclaimer(recorder, &memory);
        for page in pins {
            let _ = reclaimer.inhibit.pin(range(page * PAGE, 1)).unwrap();
        }
        let at = |&(page, byte, len, high): &(u64, u64, u64, bool)| {
            (page * PAGE + byte + if high { 1 << 30 } else { 0 }, len)
        };
        let chain: Vec<_> = chain.iter().map(at).collect();
        let mut zeroed = Zeroed::default();
        reclaimer.snapshot().discard_while(&mut ranges(&chain), &mut zeroed, || true);
        let calls = recorder.calls.lock().unwrap();
        for page in 0..2 * PAGES {
            let offset = page * PAGE;
            let done = calls.iter().any(|(start, len)| {
                failing.map(|page| page * PAGE) != Some(*start)
                    && (*start..*start + *len).contains(&offset)
            });
            let gpa = if page < PAGES { offset } else { (1 << 30) + offset - PAGES * PAGE };
            prop_assert_eq!(zeroed.covers(range(gpa, PAGE)), done, "page {}", page);
        }
        prop_assert!(!zeroed.covers(range(PAGES * PAGE, 1)));
    }
}
