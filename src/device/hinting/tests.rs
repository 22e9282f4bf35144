// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::device::chain::tests::{NEXT, TABLE, WRITE, memory, write};
use proptest::prelude::*;
use vm_memory::Bytes;

const COMMANDS: u64 = 0x4000;
const PAGE: u64 = 0x8000;

/// A buffer of a driver on the hinting queue.
#[derive(Clone, Copy, Debug)]
enum Item {
    Command(u32),
    Page,
}
use Item::{Command, Page};

/// Serves `items` as one chain: whether its pages were to be discarded, and whether the
/// configuration space has changed.
fn serve(hinting: &mut Hinting, items: &[Item], counters: &Counters) -> (u64, bool) {
    let memory = memory();
    let mut descriptors = Vec::new();
    for (i, item) in (0_u16..).zip(items) {
        let next = if usize::from(i) + 1 < items.len() { NEXT } else { 0 };
        descriptors.push(match item {
            Page => (PAGE, 0x1000, WRITE | next, i + 1),
            Command(id) => {
                let at = COMMANDS + 4 * u64::from(i);
                memory.write_obj(id.to_le(), GuestAddress(at)).unwrap();
                (at, 4, next, i + 1)
            }
        });
    }
    write(&memory, TABLE, &descriptors);
    let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
    let mut chain = hinting.begin();
    let mut ranges = Vec::new();
    chain.collect(head, &memory, &mut ranges, counters).unwrap();
    let pages = ranges.len() as u64;
    hinting.collected(chain, pages, 0x1000 * pages);
    (pages, hinting.finish())
}

#[test]
fn a_round_goes_from_its_id_to_done() {
    let (mut hinting, counters) = (Hinting::new(0), Counters::default());
    assert_eq!(hinting.command_id(), STOP);
    assert_eq!(hinting.stop(), Err(HintingError::NotRunning));
    for id in [2, 3] {
        hinting.start().unwrap();
        assert_eq!(hinting.start(), Err(HintingError::Running));
        assert_eq!(hinting.command_id(), id);
        // From the round before, or out of thin air.
        assert_eq!(serve(&mut hinting, &[Page], &counters), (0, false));
        assert_eq!(serve(&mut hinting, &[Command(id)], &counters), (0, false));
        assert_eq!(serve(&mut hinting, &[Page], &counters), (1, false));
        assert_eq!(serve(&mut hinting, &[Page, Page], &counters), (2, false));
        assert_eq!(hinting.status().state, HintingState::Running);
        assert_eq!(serve(&mut hinting, &[Command(STOP)], &counters), (0, true));
        let (state, ranges, bytes) = (HintingState::Done, 3, 0x3000);
        let (requested_id, driver_id) = (DONE, Some(STOP));
        let status = HintingStatus { state, requested_id, driver_id, ranges, bytes };
        assert_eq!(hinting.status(), status);
        assert_eq!(serve(&mut hinting, &[Page], &counters), (0, false));
    }
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::NotHinting), 4 * 0x1000);
}

#[test]
fn a_chain_may_hold_a_whole_round() {
    let (mut hinting, counters) = (Hinting::new(0), Counters::default());
    hinting.start().unwrap();
    let items = [Page, Command(7), Page, Command(2), Page, Command(STOP), Page];
    assert_eq!(serve(&mut hinting, &items, &counters), (1, true));
    assert_eq!(hinting.command_id(), DONE);
}

#[test]
fn stop_lets_the_driver_have_its_pages() {
    let (mut hinting, counters) = (Hinting::new(0), Counters::default());
    hinting.start().unwrap();
    serve(&mut hinting, &[Command(2)], &counters);
    hinting.stop().unwrap();
    assert_eq!(hinting.command_id(), DONE);
    assert_eq!(hinting.status().state, HintingState::Stopped);
    // The driver does not know it yet.
    assert_eq!(serve(&mut hinting, &[Page], &counters), (0, false));
    assert_eq!(serve(&mut hinting, &[Command(STOP)], &counters), (0, false));
    assert_eq!(hinting.status().state, HintingState::Stopped);
}

#[test]
fn done_waits_for_the_discard_that_is_under_way() {
    let mut hinting = Hinting::new(0);
    hinting.start().unwrap();
    let chain = hinting.begin();
    hinting.collected(chain, 1, 0x1000);
    hinting.stop().unwrap();
    assert_eq!(hinting.command_id(), STOP);
    assert!(hinting.finish());
    assert_eq!(hinting.command_id(), DONE);
    // A new round takes the pages of the stopped one over.
    hinting.start().unwrap();
    let chain = hinting.begin();
    hinting.collected(chain, 1, 0x1000);
    hinting.stop().unwrap();
    hinting.start().unwrap();
    assert_eq!(hinting.command_id(), 4);
    assert!(!hinting.finish());
    assert_eq!((hinting.command_id(), hinting.status().ranges), (4, 0));
}

#[test]
fn a_new_driver_finds_no_round_and_no_id_comes_again() {
    let (mut hinting, counters) = (Hinting::new(0), Counters::default());
    hinting.start().unwrap();
    serve(&mut hinting, &[Command(2), Page], &counters);
    hinting.reset();
    assert_eq!((hinting.command_id(), hinting.status().driver_id), (STOP, None));
    hinting.start().unwrap();
    assert_eq!(hinting.command_id(), 3);
    hinting.restore(u32::MAX - 1, u32::MAX);
    assert_eq!((hinting.command_id(), hinting.status().state), (DONE, HintingState::Stopped));
    for id in [u32::MAX, FIRST_ID] {
        hinting.start().unwrap();
        assert_eq!(hinting.command_id(), id);
        hinting.stop().unwrap();
    }
    for (command_id, expected) in [(STOP, STOP), (DONE, DONE)] {
        hinting.restore(command_id, 1);
        assert_eq!((hinting.command_id(), hinting.next_id()), (expected, FIRST_ID));
    }
}

#[test]
fn what_is_no_hint_is_skipped() {
    let memory = memory();
    let (mut hinting, counters) = (Hinting::new(0), Counters::default());
    hinting.start().unwrap();
    memory.write_obj(2_u32.to_le(), GuestAddress(COMMANDS)).unwrap();
    write(
        &memory,
        TABLE,
        &[
            (COMMANDS, 4, NEXT, 1),
            (COMMANDS, 3, NEXT, 2),
            (1 << 40, 4, NEXT, 3),
            (PAGE, 0, WRITE | NEXT, 4),
            (u64::MAX, 2, WRITE | NEXT, 5),
            (PAGE, 0x1000, WRITE, 0),
        ],
    );
    let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
    let mut ranges = Vec::new();
    let mut chain = hinting.begin();
    chain.collect(head, &memory, &mut ranges, &counters).unwrap();
    assert_eq!(ranges, [GuestRange::new(PAGE, 0x1000).unwrap()]);
    let snapshot = counters.snapshot();
    assert_eq!(snapshot.skipped_bytes(SkipReason::Malformed), 3);
    assert_eq!(snapshot.skipped_bytes(SkipReason::OutsideMemory), 4);
    assert_eq!(snapshot.skipped_bytes(SkipReason::Wraps), 2);
    assert_eq!(snapshot.all_skipped_bytes(), 9);
    // Broken off, its commands do not count either.
    write(&memory, TABLE + 5 * 16, &[(PAGE, 0x1000, WRITE | NEXT, 9)]);
    let mut chain = Hinting { requested: 2, ..Hinting::new(0) }.begin();
    chain.collect(head, &memory, &mut ranges, &counters).unwrap_err();
    assert_eq!((ranges.len(), chain.driver), (0, None));
    assert_eq!(counters.snapshot().skipped_bytes(SkipReason::BrokenChain), 0x1000);
}

/// What an operator or a driver does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start,
    Stop,
    Reset,
    Chain(Item, Item),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let item = prop_oneof![
        3 => (0_u32..6).prop_map(Command),
        1 => any::<u32>().prop_map(Command),
        3 => Just(Page),
    ];
    let step = prop_oneof![
        2 => Just(Step::Start),
        1 => Just(Step::Stop),
        1 => Just(Step::Reset),
        8 => (item.clone(), item).prop_map(|(a, b)| Step::Chain(a, b)),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    /// Whatever comes in whatever order: pages count only under the ID that is wanted now, no
    /// ID comes twice, and a round that ends keeps no page from the driver.
    #[test]
    fn pages_count_only_under_the_present_id(steps in steps()) {
        let (mut hinting, counters) = (Hinting::new(0), Counters::default());
        let mut driver = None;
        let mut last_id = 1;
        for step in steps {
            match step {
                Step::Start => if hinting.start().is_ok() {
                    prop_assert_eq!(hinting.command_id(), last_id + 1);
                    last_id += 1;
                },
                Step::Stop => if hinting.stop().is_ok() {
                    prop_assert_eq!(hinting.command_id(), DONE);
                },
                Step::Reset => {
                    hinting.reset();
                    driver = None;
                }
                Step::Chain(a, b) => {
                    let requested = hinting.command_id();
                    let (mut expected, mut ended) = (0, false);
                    for item in [a, b] {
                        let wanted = requested >= FIRST_ID && driver == Some(requested);
                        match item {
                            Page => expected += u64::from(wanted),
                            Command(id) => {
                                ended |= wanted && id == STOP;
                                driver = Some(id);
                            }
                        }
                    }
                    prop_assert_eq!(
                        serve(&mut hinting, &[a, b], &counters),
                        (expected, ended)
                    );
                    let id = if ended { DONE } else { requested };
                    prop_assert_eq!(hinting.command_id(), id);
                }
            }
        }
    }
}
