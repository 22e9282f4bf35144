// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Free page hinting (virtio 1.3, section 5.5.6.5): on request, and for one round, the driver names
//! the pages that are free.
//!
//! A hint does not keep the guest from the page: it may write to it before the device has looked at
//! the hint, and the device cannot tell. Whoever discards hinted pages may discard what a guest has
//! just written; the specification leaves it to the device to notice (5.5.6.5.2). That is why hints
//! are an option that is off. `poison_val` does not matter to them: a driver treats hinted pages as
//! uninitialized memory (5.5.6.5.1).
//!
//! A round goes like this: the device sets a command ID that it has not used before, the driver
//! sends it back, then its free pages, and `STOP` when it has no more. Pages that come under any
//! other ID are ignored. At the end the device sets `DONE`, and not before it has stopped touching
//! the pages: then the driver uses them again.

use vm_memory::GuestAddress;

use super::chain::{ChainError, ChainHead};
use crate::discard::{GuestMemory, GuestRange, RangeError, peek};
use crate::metrics::{Counters, SkipReason};

/// No pages are wanted; those that were hinted stay with the driver.
const STOP: u32 = 0;
/// No pages are wanted, and those that were hinted may be used.
const DONE: u32 = 1;
/// The first ID that asks for pages.
const FIRST_ID: u32 = 2;

/// Why hinting cannot be started or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HintingError {
    /// The operator has not asked for hints when the daemon was started.
    #[error("free page hints are not offered to the guest: start the daemon with them")]
    NotOffered,
    /// There is no driver, or it does not know hints.
    #[error("the guest's driver has not acked free page hints")]
    NotAcked,
    /// A round is under way.
    #[error("a round of hinting is under way: stop it first, or wait for its end")]
    Running,
    /// No round is under way.
    #[error("no round of hinting is under way")]
    NotRunning,
}

/// How a round of hinting stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HintingState {
    /// There was none yet, or it was stopped.
    #[default]
    Stopped,
    /// The driver was asked for its free pages and has not named them all.
    Running,
    /// The driver has named all of them.
    Done,
}

/// What is known of the last round of hinting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintingStatus {
    /// How it stands.
    pub state: HintingState,
    /// What the configuration space asks for: 0 for STOP, 1 for DONE, or the ID of a round.
    pub requested_id: u32,
    /// The ID that the driver sent last.
    pub driver_id: Option<u32>,
    /// Ranges that came in this round.
    pub ranges: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// The rounds of hinting.
#[derive(Debug)]
pub(super) struct Hinting {
    state: HintingState,
    /// The ID of the next round. None comes twice: Linux takes no notice of a request with the ID
    /// of its last round (`report_free_page_func`).
    next: u32,
    /// What the configuration space says.
    requested: u32,
    /// What the driver said last.
    driver: Option<u32>,
    /// The pages of a chain are being discarded.
    serving: bool,
    /// `DONE` is due once they are.
    done_due: bool,
    ranges: u64,
    bytes: u64,
}

impl Hinting {
    /// No round so far; the first one gets the ID `first`, or the lowest there is.
    pub(super) fn new(first: u32) -> Self {
        Self {
            state: HintingState::Stopped,
            next: first.max(FIRST_ID),
            requested: STOP,
            driver: None,
            serving: false,
            done_due: false,
            ranges: 0,
            bytes: 0,
        }
    }

    /// The ID of the next round.
    pub(super) fn next_id(&self) -> u32 {
        self.next
    }

    /// What belongs in the configuration space.
    pub(super) fn command_id(&self) -> u32 {
        self.requested
    }

    pub(super) fn status(&self) -> HintingStatus {
        HintingStatus {
            state: self.state,
            requested_id: self.requested,
            driver_id: self.driver,
            ranges: self.ranges,
            bytes: self.bytes,
        }
    }

    /// Begins a round.
    pub(super) fn start(&mut self) -> Result<(), HintingError> {
        if self.state == HintingState::Running {
            return Err(HintingError::Running);
        }
        self.state = HintingState::Running;
        self.requested = self.next;
        self.next = following(self.next);
        // After STOP the next round takes up where that one was (5.5.6.5).
        self.done_due = false;
        (self.ranges, self.bytes) = (0, 0);
        Ok(())
    }

    /// Ends a round before the driver does.
    pub(super) fn stop(&mut self) -> Result<(), HintingError> {
        if self.state != HintingState::Running {
            return Err(HintingError::NotRunning);
        }
        self.state = HintingState::Stopped;
        // While a discard is under way the driver must not use its pages yet.
        self.done_due = self.serving;
        self.requested = if self.serving { STOP } else { DONE };
        Ok(())
    }

    /// A new driver: it holds no pages, and no round is under way.
    pub(super) fn reset(&mut self) {
        *self = Self { serving: self.serving, ..Self::new(self.next) };
    }

    /// Goes on from what another device left in the configuration space, with its next ID. A round
    /// that was under way there is over: its pages are the driver's again.
    pub(super) fn restore(&mut self, command_id: u32, next: u32) {
        *self = Self { serving: self.serving, ..Self::new(next) };
        self.requested = if command_id == STOP { STOP } else { DONE };
    }

    /// A chain has come.
    pub(super) fn begin(&mut self) -> Chain {
        self.serving = true;
        Chain { requested: self.requested, driver: self.driver, ended: false }
    }

    /// The pages of a chain were discarded. Says whether the configuration space changes.
    pub(super) fn finish(&mut self, chain: Chain, ranges: u64, bytes: u64) -> bool {
        self.serving = false;
        self.driver = chain.driver;
        let same_round = chain.requested == self.requested;
        let due = std::mem::take(&mut self.done_due);
        if same_round {
            self.ranges = self.ranges.saturating_add(ranges);
            self.bytes = self.bytes.saturating_add(bytes);
        }
        if same_round && chain.ended {
            self.state = HintingState::Done;
            self.requested = DONE;
        } else if due {
            self.requested = DONE;
        } else {
            return false;
        }
        true
    }
}

/// The ID after `id`.
fn following(id: u32) -> u32 {
    id.checked_add(1).unwrap_or(FIRST_ID)
}

/// The round as it is for one chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    requested: u32,
    driver: Option<u32>,
    ended: bool,
}

impl Chain {
    /// The driver has sent a command.
    fn command(&mut self, id: u32) {
        self.ended |= self.wanted() && id == STOP;
        self.driver = Some(id);
    }

    /// Whether pages that come now belong to the round that is under way.
    fn wanted(&self) -> bool {
        self.requested >= FIRST_ID && self.driver == Some(self.requested)
    }

    /// Replaces `ranges` by the pages that the chain hints, unchecked against the guest's memory,
    /// and takes note of the commands in it.
    ///
    /// # Errors
    /// [`ChainError`] if the chain breaks; then there are no pages, and its commands do not count.
    pub(super) fn collect(
        &mut self,
        head: ChainHead,
        memory: &GuestMemory,
        ranges: &mut Vec<GuestRange>,
        counters: &Counters,
    ) -> Result<(), ChainError> {
        ranges.clear();
        let before = *self;
        let end = head.walk(memory, |descriptor| {
            let len = u64::from(descriptor.len());
            let skip = if !descriptor.is_write_only() {
                match read_command(memory, descriptor.addr(), len) {
                    Ok(id) => return self.command(id),
                    Err(reason) => reason,
                }
            } else if !self.wanted() {
                SkipReason::NotHinting
            } else {
                match GuestRange::new(descriptor.addr().0, len) {
                    Ok(range) => return ranges.push(range),
                    Err(RangeError::Empty) => SkipReason::Empty,
                    Err(RangeError::Wraps) => SkipReason::Wraps,
                }
            };
            counters.skip(skip, len);
        });
        if end.is_err() {
            counters.skip(SkipReason::BrokenChain, ranges.iter().map(GuestRange::len).sum());
            ranges.clear();
            *self = before;
        }
        end
    }
}

/// Reads a command ID, which is all that a buffer of four bytes can be.
fn read_command(memory: &GuestMemory, at: GuestAddress, len: u64) -> Result<u32, SkipReason> {
    if len != size_of::<u32>() as u64 {
        return Err(SkipReason::Malformed);
    }
    let mut bytes = [0; size_of::<u32>()];
    match peek(memory, at, &mut bytes) {
        Ok(read) if read == bytes.len() => Ok(u32::from_le_bytes(bytes)),
        Ok(_) => Err(SkipReason::OutsideMemory),
        Err(_) => Err(SkipReason::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::{NEXT, TABLE, WRITE, memory, write};
    use super::*;
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
        (pages, hinting.finish(chain, pages, 0x1000 * pages))
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
        hinting.stop().unwrap();
        assert_eq!(hinting.command_id(), STOP);
        assert!(hinting.finish(chain, 1, 0x1000));
        assert_eq!(hinting.command_id(), DONE);
        // A new round takes the pages of the stopped one over.
        hinting.start().unwrap();
        let chain = hinting.begin();
        hinting.stop().unwrap();
        hinting.start().unwrap();
        assert_eq!(hinting.command_id(), 4);
        assert!(!hinting.finish(chain, 1, 0x1000));
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
        /// ID comes twice, and a round that ends leaves no page with the driver for ever.
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
}
