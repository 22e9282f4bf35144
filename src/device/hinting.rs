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
pub(crate) enum HintingError {
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
pub(crate) enum HintingState {
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
pub(crate) struct HintingStatus {
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

/// A chain between its collecting and its end.
#[derive(Clone, Copy, Debug)]
struct Serving {
    chain: Chain,
    ranges: u64,
    bytes: u64,
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
    /// The chain whose pages are being discarded.
    serving: Option<Serving>,
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
            serving: None,
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
        self.done_due = self.serving.is_some();
        self.requested = if self.serving.is_some() { STOP } else { DONE };
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
        let chain = Chain { requested: self.requested, driver: self.driver, ended: false };
        self.serving = Some(Serving { chain, ranges: 0, bytes: 0 });
        chain
    }

    /// The chain that was [begun](Self::begin) names this much; its pages are discarded next.
    pub(super) fn collected(&mut self, chain: Chain, ranges: u64, bytes: u64) {
        self.serving = Some(Serving { chain, ranges, bytes });
    }

    /// Ends the chain whose pages were discarded. Says whether the configuration space changes.
    pub(super) fn finish(&mut self) -> bool {
        let Some(Serving { chain, ranges, bytes }) = self.serving.take() else { return false };
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
mod tests;
