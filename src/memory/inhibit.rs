//! When nothing may be discarded, and what may never be.
//!
//! Whoever needs memory to stay, for a snapshot, a migration or a device that reads it by itself,
//! needs it from the moment on that the answer says so: a discard that was let through a moment
//! before must not come after. So each call that discards is made under a lock, and whoever
//! forbids something waits for it: for the one call under way, never for a chain or a guest.

use std::sync::RwLockReadGuard;
use std::sync::atomic::{AtomicU8, Ordering};

use super::ranges::{GuestRange, merge};
use super::writers_first::WritersFirst;
use crate::metrics::SkipReason;

/// Why discarding stands still. Each cause comes and goes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The operator has paused it.
    Operator,
    /// The frontend logs dirty pages (`VHOST_F_LOG_ALL`): a live migration is under way.
    Migration,
    /// A postcopy migration is under way: pages that are missing here are still to come.
    Postcopy,
}

/// The most different ranges that can be pinned.
pub const MOST_PINS: usize = 1024;

/// A range that may not be discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Guest physical addresses.
    pub range: GuestRange,
    /// How often it was pinned and not unpinned.
    pub count: u32,
}

/// Why a range cannot be pinned or unpinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There are as many pins as there can be.
    #[error("{MOST_PINS} ranges are pinned, which is the most; unpin one, or pin a larger range")]
    TooMany,
    /// The range was pinned as often as can be counted.
    #[error("the range was pinned {} times, which is the most", u32::MAX)]
    TooOften,
    /// No pin has exactly this address and length.
    #[error(
        "nothing is pinned at {start:#x} with a length of {len:#x} bytes; to unpin takes the \
         address and length of a pin"
    )]
    NotPinned {
        /// Guest physical address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// What keeps memory from being discarded; set and asked from any thread.
#[derive(Debug, Default)]
pub struct Inhibit {
    causes: AtomicU8,
    /// Held for reading while a call discards.
    pins: WritersFirst<Pins>,
}

#[derive(Debug, Default)]
struct Pins {
    /// Sorted, each range once.
    list: Vec<Pin>,
    /// The same memory in as few ranges as possible.
    merged: Vec<GuestRange>,
}

impl Inhibit {
    /// Says that `cause` holds, or does not hold any more. When a cause has been set nothing is
    /// discarded until it is taken back: this waits for a call that is under way.
    pub fn set(&self, cause: Cause, holds: bool) {
        let bit = 1 << cause as u8;
        if holds {
            self.causes.fetch_or(bit, Ordering::SeqCst);
            drop(self.pins.write());
        } else {
            self.causes.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Whether `cause` holds.
    pub fn holds(&self, cause: Cause) -> bool {
        self.causes.load(Ordering::SeqCst) & (1 << cause as u8) != 0
    }

    /// Why nothing may be discarded now; `None` if something may.
    pub fn reason(&self) -> Option<SkipReason> {
        if self.holds(Cause::Migration) {
            return Some(SkipReason::Migrating);
        }
        if self.holds(Cause::Postcopy) {
            return Some(SkipReason::Postcopy);
        }
        self.holds(Cause::Operator).then_some(SkipReason::Paused)
    }

    /// Keeps every page that `range` touches, whatever the guest reports, until the range is
    /// unpinned as often as it was pinned. When this returns no discard of it is under way.
    ///
    /// Any addresses will do, guest memory or not yet, and pins may overlap: memory is free again
    /// when no pin covers it. Pins outlive connections. Memory that the guest sees at two
    /// addresses is pinned at both.
    ///
    /// # Errors
    /// [`PinError::TooMany`], [`PinError::TooOften`]; nothing has changed then.
    pub fn pin(&self, range: GuestRange) -> Result<(), PinError> {
        let mut pins = self.pins.write();
        match pins.list.binary_search_by_key(&range, |pin| pin.range) {
            Ok(place) => {
                let count = &mut pins.list[place].count;
                *count = count.checked_add(1).ok_or(PinError::TooOften)?;
            }
            Err(_) if pins.list.len() >= MOST_PINS => return Err(PinError::TooMany),
            Err(place) => {
                pins.list.insert(place, Pin { range, count: 1 });
                pins.merge();
            }
        }
        Ok(())
    }

    /// Takes one [`Inhibit::pin`] of exactly this range back.
    ///
    /// # Errors
    /// [`PinError::NotPinned`].
    pub fn unpin(&self, range: GuestRange) -> Result<(), PinError> {
        let mut pins = self.pins.write();
        let place = pins
            .list
            .binary_search_by_key(&range, |pin| pin.range)
            .map_err(|_| PinError::NotPinned { start: range.start(), len: range.len() })?;
        pins.list[place].count -= 1;
        if pins.list[place].count == 0 {
            pins.list.remove(place);
            pins.merge();
        }
        Ok(())
    }

    /// What is pinned, by address.
    pub fn pins(&self) -> Vec<Pin> {
        self.pins.read().list.clone()
    }

    /// Leave to make one discarding call, for as long as it is kept.
    ///
    /// Whoever forbids something comes before the next.
    ///
    /// # Errors
    /// Why nothing may be discarded.
    pub(super) fn permit(&self) -> Result<Permit<'_>, SkipReason> {
        let pins = self.pins.read();
        match self.reason() {
            Some(reason) => Err(reason),
            None => Ok(Permit(pins)),
        }
    }
}

#[cfg(test)]
impl Inhibit {
    /// Whether somebody waits for a call that is under way.
    pub(super) fn is_waited_for(&self) -> bool {
        self.pins.writer_waits()
    }
}

impl Pins {
    fn merge(&mut self) {
        self.merged.clear();
        self.merged.extend(self.list.iter().map(|pin| pin.range));
        merge(&mut self.merged);
    }
}

/// See [`Inhibit::permit`].
pub(super) struct Permit<'a>(RwLockReadGuard<'a, Pins>);

impl Permit<'_> {
    /// What must stay even so, sorted and merged.
    pub(super) fn pinned(&self) -> &[GuestRange] {
        &self.0.merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> GuestRange {
        GuestRange::new(start, len).unwrap()
    }

    fn pinned(inhibit: &Inhibit) -> Vec<GuestRange> {
        inhibit.permit().unwrap_or_else(|_| panic!("nothing forbids it")).pinned().to_vec()
    }

    #[test]
    fn each_cause_comes_and_goes_by_itself() {
        let inhibit = Inhibit::default();
        assert_eq!(inhibit.reason(), None);
        inhibit.set(Cause::Operator, true);
        inhibit.set(Cause::Migration, true);
        assert_eq!(inhibit.reason(), Some(SkipReason::Migrating));
        inhibit.set(Cause::Migration, false);
        assert_eq!(inhibit.permit().err(), Some(SkipReason::Paused));
        inhibit.set(Cause::Operator, false);
        assert!(inhibit.permit().is_ok());
    }

    #[test]
    fn memory_is_free_again_when_no_pin_covers_it() {
        let inhibit = Inhibit::default();
        for pin in [range(5, 10), range(0, 8), range(5, 10)] {
            inhibit.pin(pin).unwrap();
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
            inhibit.pin(range(less, u64::MAX - less)).unwrap();
        }
        assert_eq!(pinned(&inhibit), [range(0, u64::MAX)]);
    }

    #[test]
    fn pins_are_bounded() {
        let inhibit = Inhibit::default();
        for at in 0..MOST_PINS as u64 {
            inhibit.pin(range(at * 2, 1)).unwrap();
        }
        assert_eq!(inhibit.pin(range(1, 1)), Err(PinError::TooMany));
        // The same once more is no further range.
        inhibit.pin(range(0, 1)).unwrap();
        assert_eq!(inhibit.pins().len(), MOST_PINS);
        assert_eq!(pinned(&inhibit).len(), MOST_PINS);
    }
}
