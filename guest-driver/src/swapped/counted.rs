// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A copy that is freed with its last reference, which an atomic count in the copy counts.
//!
//! Readers of one copy write its count, a cache line that they share.

use super::slots::{Handle, Slots};
use crate::sync::{AtomicU64, Ordering};

/// A mistake that is put there to be found.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum CountedFlaw {
    /// The copy that was swapped out is freed at once: a swap without grace.
    FreedAtOnce,
    /// A reader loads the pointer and increments the count there, whatever it is by then.
    NoLookAgain,
    /// A reader increments the count unless it is zero, and does not look whether the pointer is still the
    /// same: the slot may hold another copy by then.
    OnlyUnlessZero,
}

/// A pointer to the current copy, which refers to it.
#[derive(Debug)]
pub struct Counted {
    current: AtomicU64,
    flaw: Option<CountedFlaw>,
}

/// A reader's reference, to be returned by [`Counted::put`].
#[derive(Debug)]
#[must_use = "the copy is never freed"]
pub struct Reference(Handle);

impl Reference {
    /// Where the copy is.
    pub fn handle(&self) -> Handle {
        self.0
    }
}

impl Counted {
    /// Points to the copy at `first`, whose reference it takes over.
    pub fn new(first: Handle, flaw: Option<CountedFlaw>) -> Self {
        Self { current: AtomicU64::new(first.pack()), flaw }
    }

    /// The copy that it points to now. Without a reference it may be freed at any time.
    pub fn peek(&self) -> Handle {
        Handle::unpack(self.current.load(Ordering::Acquire))
    }

    /// Refers to the current copy: two loads and one locked instruction, if no update is in the way.
    pub fn get<T>(&self, slots: &Slots<T>) -> Reference {
        loop {
            let seen = self.peek();
            match self.flaw {
                Some(CountedFlaw::NoLookAgain) => {
                    slots.add_reference(seen);
                    return Reference(seen);
                }
                Some(CountedFlaw::OnlyUnlessZero) => {
                    if slots.add_reference_unless_none(seen) {
                        return Reference(seen);
                    }
                    continue;
                }
                Some(CountedFlaw::FreedAtOnce) | None => {}
            }
            if !slots.add_reference_unless_none(seen) {
                // The last reference is gone: the pointer has moved on.
                continue;
            }
            let now = self.peek();
            if now.is_at(seen) {
                return Reference(now);
            }
            // It counts for whatever the slot holds by now, which must lose it again.
            slots.drop_reference_in(seen);
        }
    }

    /// Refers to it no longer.
    pub fn put<T>(&self, slots: &Slots<T>, reference: Reference) {
        match self.flaw {
            // Nothing counts.
            Some(CountedFlaw::FreedAtOnce) => {}
            _ => slots.drop_reference(reference.0),
        }
    }

    /// Points to `next` from now on, whose reference it takes over. One update at a time. Returns the copy
    /// of before, of which the caller may let go by [`Counted::release`].
    pub fn swap(&self, next: Handle) -> Handle {
        Handle::unpack(self.current.swap(next.pack(), Ordering::AcqRel))
    }

    /// Drops the pointer's reference to a copy that was swapped out.
    pub fn release<T>(&self, slots: &Slots<T>, old: Handle) {
        match self.flaw {
            Some(CountedFlaw::FreedAtOnce) => slots.free(old),
            _ => slots.drop_reference(old),
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::swapped::Supply;

    fn slots() -> Slots<()> {
        Slots::new("copy", || ())
    }

    fn copy(slots: &Slots<()>) -> Handle {
        slots.allocate(&Supply::new(), |()| {}).expect("there is memory")
    }

    #[test]
    fn copy_in_use_outlives_the_swap() {
        let slots = slots();
        let pointer = Counted::new(copy(&slots), None);
        let old = pointer.get(&slots);
        let before = pointer.swap(copy(&slots));
        pointer.release(&slots, before);
        assert_eq!((before, slots.live()), (old.handle(), 2));
        slots.get(old.handle());
        pointer.put(&slots, old);
        assert_eq!(slots.live(), 1);
    }

    #[test]
    fn swapped_out_copy_without_reader_is_freed() {
        let slots = slots();
        let pointer = Counted::new(copy(&slots), None);
        for _ in 0..100 {
            let before = pointer.swap(copy(&slots));
            pointer.release(&slots, before);
        }
        assert_eq!((slots.live(), slots.peak()), (1, 2));
    }

    #[test]
    #[should_panic(expected = "use after free: copy 1 in copy 0 is read")]
    fn swap_without_grace_frees_a_copy_in_use() {
        let slots = slots();
        let pointer = Counted::new(copy(&slots), Some(CountedFlaw::FreedAtOnce));
        let old = pointer.get(&slots);
        let before = pointer.swap(copy(&slots));
        pointer.release(&slots, before);
        slots.get(old.handle());
    }

    #[test]
    fn readers_and_updates_side_by_side() {
        let slots = slots();
        let pointer = Counted::new(copy(&slots), None);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let reference = pointer.get(&slots);
                        slots.get(reference.handle());
                        pointer.put(&slots, reference);
                    }
                });
            }
            for _ in 0..20_000 {
                let before = pointer.swap(copy(&slots));
                pointer.release(&slots, before);
            }
        });
        assert_eq!(slots.live(), 1);
    }
}
