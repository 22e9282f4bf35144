// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When nothing may be discarded, and what may never be.
//!
//! A caller that needs memory to stay, for a snapshot, a migration or a device that reads it by
//! itself, needs it from the moment on that the answer says so: a discard that was let through a
//! moment before must not come after. So each call that discards is registered while it is under
//! way. A ban takes effect at once for every later call, and comes with a [`Ticket`] for the calls
//! under way: one call a worker, never a chain or a guest. No lock is held over a call, because a
//! call takes as long as the memory file lets it: the VMM may hold the file's inode lock for
//! seconds.

use std::sync::Arc;

use strum::{EnumCount, IntoStaticStr, VariantArray};

use super::pins::{MOST_PINS, Pin, PinError};
use super::ranges::{GuestRange, merge};
use crate::lock::atomic::{AtomicU8, Ordering};
use crate::lock::{Condvar, Mutex, MutexGuard, PoisonError, lock};
use crate::metrics::SkipReason;
use crate::wake::Wakes;

/// Why discarding is paused. Each cause holds and is lifted on its own. The name in metrics and the
/// status is the variant's in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[cfg_attr(test, derive(strum::EnumMessage))]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// The operator has paused discarding.
    Operator,
    /// The frontend logs dirty pages (`VHOST_F_LOG_ALL`): a live migration is in progress.
    Migration,
    /// A postcopy migration is in progress: a missing page is one that has not arrived yet.
    Postcopy,
    /// The operator has parked the guest (`ctl park`).
    Parked,
}

impl Cause {
    /// The name in metrics and the status.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The reason that is counted while this cause holds.
    fn reason(self) -> SkipReason {
        match self {
            Self::Migration => SkipReason::Migrating,
            Self::Postcopy => SkipReason::Postcopy,
            Self::Operator | Self::Parked => SkipReason::Paused,
        }
    }

    /// The bit of this cause in [`Inhibit::causes`].
    const fn bit(self) -> u8 {
        const { assert!(Self::COUNT <= u8::BITS as usize, "a bit for each cause") };
        1 << self as u8
    }
}

/// The discarding calls that were under way when something was forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a call that is now forbidden may still be under way until the ticket is over"]
pub(crate) struct Ticket(u64);

/// What keeps memory from being discarded; set and asked from any thread, none of which waits.
#[derive(Debug, Default)]
pub(crate) struct Inhibit {
    causes: AtomicU8,
    /// Held for some instructions, never over a system call.
    inner: Mutex<Inner>,
    /// A call that a ticket was asked for has ended.
    ended: Condvar,
    /// Signalled with it.
    operators: Arc<Wakes>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sorted, each range once.
    pins: Vec<Pin>,
    /// The same memory in as few ranges as possible.
    merged: Arc<[GuestRange]>,
    /// How many calls have begun.
    begun: u64,
    /// Which of them have not ended, one a worker.
    under_way: Vec<u64>,
    /// The last call that a ticket was asked for.
    awaited: u64,
}

impl Inhibit {
    /// Nothing is forbidden. `operators` is signalled when a ticket is over that was asked for
    /// before.
    pub(crate) fn new(operators: Arc<Wakes>) -> Self {
        Self { operators, ..Self::default() }
    }

    /// Discards nothing from now on until `cause` is [lifted](Self::lift); a call under way ends
    /// with the ticket.
    pub(crate) fn forbid(&self, cause: Cause) -> Ticket {
        let inner = self.lock();
        self.causes.fetch_or(cause.bit(), Ordering::SeqCst);
        Ticket(inner.begun)
    }

    /// `cause` does not hold any more.
    pub(crate) fn lift(&self, cause: Cause) {
        self.causes.fetch_and(!cause.bit(), Ordering::SeqCst);
    }

    /// Whether `cause` holds.
    pub(crate) fn holds(&self, cause: Cause) -> bool {
        self.causes.load(Ordering::SeqCst) & cause.bit() != 0
    }

    /// Why nothing may be discarded now; `None` if something may.
    pub(crate) fn reason(&self) -> Option<SkipReason> {
        // Of several causes the operator's are counted last.
        let held = Cause::VARIANTS.iter().filter(|cause| self.holds(**cause));
        held.min_by_key(|cause| cause.reason() == SkipReason::Paused).map(|cause| cause.reason())
    }

    /// Keeps every page that `range` touches, whatever the guest reports, until the range is
    /// unpinned as often as it was pinned. No discard of it is under way once the ticket is over.
    ///
    /// Any addresses will do, guest memory or not yet, and pins may overlap: memory is free again
    /// when no pin covers it. Pins outlive connections. Memory that the guest sees at two
    /// addresses is pinned at both.
    ///
    /// # Errors
    /// [`PinError::TooMany`], [`PinError::TooOften`]; nothing has changed then.
    pub(crate) fn pin(&self, range: GuestRange) -> Result<Ticket, PinError> {
        self.pin_often(range, 1)
    }

    /// Does the same as `times` pins of this range, at least one, in the time of one.
    ///
    /// # Errors
    /// As [`Inhibit::pin`].
    pub(crate) fn pin_often(&self, range: GuestRange, times: u32) -> Result<Ticket, PinError> {
        let mut inner = self.lock();
        match inner.pins.binary_search_by_key(&range, |pin| pin.range) {
            Ok(place) => {
                let count = &mut inner.pins[place].count;
                *count = count.checked_add(times).ok_or(PinError::TooOften)?;
            }
            Err(_) if inner.pins.len() >= MOST_PINS => return Err(PinError::TooMany),
            Err(place) => {
                inner.pins.insert(place, Pin { range, count: times });
                inner.merge();
            }
        }
        Ok(Ticket(inner.begun))
    }

    /// Takes one [`Inhibit::pin`] of exactly this range back.
    ///
    /// # Errors
    /// [`PinError::NotPinned`].
    pub(crate) fn unpin(&self, range: GuestRange) -> Result<(), PinError> {
        let mut inner = self.lock();
        let place = inner
            .pins
            .binary_search_by_key(&range, |pin| pin.range)
            .map_err(|_| PinError::NotPinned { start: range.start(), len: range.len() })?;
        inner.pins[place].count -= 1;
        if inner.pins[place].count == 0 {
            inner.pins.remove(place);
            inner.merge();
        }
        Ok(())
    }

    /// What is pinned, by address.
    pub(crate) fn pins(&self) -> Vec<Pin> {
        self.lock().pins.clone()
    }

    /// Whether the calls have ended that were under way when `ticket` was given. If not, the
    /// operators' `Wakes` are signalled when they have.
    pub(crate) fn is_over(&self, ticket: Ticket) -> bool {
        self.lock().is_over(ticket)
    }

    /// Waits for the calls that were under way when `ticket` was given: not for the main thread.
    pub(crate) fn wait(&self, ticket: Ticket) {
        let mut inner = self.lock();
        while !inner.is_over(ticket) {
            inner = self.ended.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Leave to make one discarding call, which is under way until the permit is dropped.
    ///
    /// # Errors
    /// Why nothing may be discarded.
    pub(crate) fn permit(&self) -> Result<Permit<'_>, SkipReason> {
        let mut inner = self.lock();
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        inner.begun += 1;
        let call = inner.begun;
        inner.under_way.push(call);
        Ok(Permit { inhibit: self, call, pinned: Arc::clone(&inner.merged) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

#[cfg(test)]
impl Inhibit {
    /// Whether a call is under way that a ticket was asked for.
    pub(super) fn is_waited_for(&self) -> bool {
        let inner = self.lock();
        inner.under_way.iter().any(|call| *call <= inner.awaited)
    }
}

impl Inner {
    fn merge(&mut self) {
        let mut merged: Vec<_> = self.pins.iter().map(|pin| pin.range).collect();
        merge(&mut merged);
        self.merged = merged.into();
    }

    fn is_over(&mut self, Ticket(last): Ticket) -> bool {
        let over = self.under_way.iter().all(|call| *call > last);
        if !over {
            self.awaited = self.awaited.max(last);
        }
        over
    }
}

/// See [`Inhibit::permit`].
pub(crate) struct Permit<'a> {
    inhibit: &'a Inhibit,
    call: u64,
    pinned: Arc<[GuestRange]>,
}

impl Permit<'_> {
    /// What must stay even so, sorted and merged.
    pub(crate) fn pinned(&self) -> &[GuestRange] {
        &self.pinned
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut inner = self.inhibit.lock();
        inner.under_way.retain(|call| *call != self.call);
        let awaited = self.call <= inner.awaited;
        drop(inner);
        if awaited {
            self.inhibit.ended.notify_all();
            self.inhibit.operators.signal();
        }
    }
}

#[cfg(test)]
#[cfg(not(interleavings))]
mod tests {
    use super::*;
    use crate::wake::Wake;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn range(start: u64, len: u64) -> GuestRange {
        GuestRange::new(start, len).unwrap()
    }

    fn pinned(inhibit: &Inhibit) -> Vec<GuestRange> {
        inhibit.permit().unwrap_or_else(|_| panic!("nothing forbids it")).pinned().to_vec()
    }

    #[test]
    fn operator_is_listed_first_and_counted_last() {
        let inhibit = Inhibit::default();
        for cause in Cause::VARIANTS {
            let _ = inhibit.forbid(*cause);
        }
        assert_eq!(Cause::VARIANTS[0], Cause::Operator);
        assert_eq!(inhibit.reason(), Some(SkipReason::Migrating));
        inhibit.lift(Cause::Migration);
        assert_eq!(inhibit.reason(), Some(SkipReason::Postcopy));
        inhibit.lift(Cause::Postcopy);
        assert_eq!(inhibit.reason(), Some(SkipReason::Paused));
    }

    #[test]
    fn each_cause_comes_and_goes_by_itself() {
        let inhibit = Inhibit::default();
        assert_eq!(inhibit.reason(), None);
        let ticket = inhibit.forbid(Cause::Operator);
        assert!(inhibit.is_over(ticket));
        inhibit.wait(inhibit.forbid(Cause::Migration));
        assert_eq!(inhibit.reason(), Some(SkipReason::Migrating));
        inhibit.lift(Cause::Migration);
        assert_eq!(inhibit.permit().err(), Some(SkipReason::Paused));
        inhibit.lift(Cause::Operator);
        assert!(inhibit.permit().is_ok());
    }

    #[test]
    fn ticket_is_over_with_the_calls_before_it() {
        let inhibit = Inhibit::default();
        let wake = Arc::new(Wake::new().unwrap());
        inhibit.operators.add(Arc::clone(&wake));
        let signalled = || {
            let mut polled = [PollFd::new(&*wake, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec::default())).unwrap() > 0
        };
        let (first, second) = (inhibit.permit().ok().unwrap(), inhibit.permit().ok().unwrap());
        let pinned = inhibit.pin(range(0, 1)).unwrap();
        assert!(second.pinned().is_empty(), "what a call was let through with stays as it was");
        let third = inhibit.permit().ok().unwrap();
        assert_eq!(third.pinned(), [range(0, 1)]);
        let paused = inhibit.forbid(Cause::Operator);
        assert!(inhibit.permit().is_err(), "at once, whatever is under way");
        drop(first);
        assert!(!signalled(), "a ticket that was not asked for wakes nothing");
        assert!(!inhibit.is_over(pinned));
        drop(second);
        assert!(signalled());
        assert!(inhibit.is_over(pinned), "the third began after it");
        wake.clear();
        assert!(!inhibit.is_over(paused));
        drop(third);
        assert!(signalled() && inhibit.is_over(paused));
    }

    #[test]
    fn memory_is_free_again_when_no_pin_covers_it() {
        let inhibit = Inhibit::default();
        for pin in [range(5, 10), range(0, 8), range(5, 10)] {
            let _ = inhibit.pin(pin).unwrap();
        }
        assert_eq!(pinned(&inhibit), [range(0, 15)]);
        assert_eq!(
            inhibit.pins(),
            [Pin { range: range(0, 8), count: 1 }, Pin { range: range(5, 10), count: 2 }]
        );
        inhibit.unpin(range(5, 10)).unwrap();
        assert_eq!(pinned(&inhibit), [range(0, 15)]);
        inhibit.unpin(range(5, 10)).unwrap();
        assert_eq!(pinned(&inhibit), [range(0, 8)]);
        let part = inhibit.unpin(range(0, 4));
        assert_eq!(part, Err(PinError::NotPinned { start: 0, len: 4 }));
        assert_eq!(pinned(&inhibit), [range(0, 8)]);
    }

    #[test]
    fn all_addresses_may_be_pinned_again_and_again() {
        let inhibit = Inhibit::default();
        for less in 0..3 {
            let _ = inhibit.pin(range(less, u64::MAX - less)).unwrap();
        }
        assert_eq!(pinned(&inhibit), [range(0, u64::MAX)]);
    }

    #[test]
    fn pins_are_bounded() {
        let inhibit = Inhibit::default();
        for at in 0..MOST_PINS as u64 {
            let _ = inhibit.pin(range(at * 2, 1)).unwrap();
        }
        assert_eq!(inhibit.pin(range(1, 1)), Err(PinError::TooMany));
        // The same once more is no further range.
        let _ = inhibit.pin(range(0, 1)).unwrap();
        assert_eq!(inhibit.pins().len(), MOST_PINS);
        assert_eq!(pinned(&inhibit).len(), MOST_PINS);
    }
}
