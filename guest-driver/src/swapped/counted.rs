// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A copy that is freed with its last reference, which an atomic count in the copy counts.
//!
//! Readers of one copy write its count, a cache line that they share.

use super::pointer::{Grace, Pointer};
use super::slots::{Handle, Slots};

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

/// Readers and the pointer each refer to a copy; who drops the last reference frees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    flaw: Option<CountedFlaw>,
}

impl Counts {
    /// With a mistake.
    pub fn new(flaw: Option<CountedFlaw>) -> Self {
        Self { flaw }
    }
}

impl<T> Grace<T> for Counts {
    type Section = ();

    fn enter(&self, _cpu: usize) {}

    /// Refers to the current copy: three loads and one locked instruction, if no update is in the way.
    fn hold(&self, slots: &Slots<T>, pointer: &Pointer) -> Option<Handle> {
        loop {
            let seen = pointer.load()?;
            match self.flaw {
                Some(CountedFlaw::NoLookAgain) => {
                    slots.add_reference(seen);
                    return Some(seen);
                }
                Some(CountedFlaw::OnlyUnlessZero) if slots.add_reference_unless_none(seen) => {
                    return Some(seen);
                }
                _ => {}
            }
            if !slots.add_reference_unless_none(seen) {
                // The last reference is gone: the pointer has moved on.
                continue;
            }
            match pointer.load() {
                Some(now) if now.is_at(seen) => return Some(now),
                // It counts for whatever the slot holds by now, which must lose it again.
                _ => slots.drop_reference_in(seen),
            }
        }
    }

    fn release(&self, slots: &Slots<T>, copy: Handle) {
        // Nothing looks at the count where copies are freed at once.
        if self.flaw != Some(CountedFlaw::FreedAtOnce) {
            slots.drop_reference(copy);
        }
    }

    fn leave(&self, (): ()) {}

    /// Drops the pointer's reference.
    fn retire(&self, slots: &Slots<T>, old: Handle) {
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

    fn copy(slots: &Slots<()>) -> Option<Handle> {
        slots.allocate(&Supply::new(), |()| {}).ok()
    }

    /// Swaps another copy in.
    fn update(counts: Counts, slots: &Slots<()>, pointer: &Pointer) {
        let old = pointer.swap(copy(slots)).expect("there was one");
        counts.retire(slots, old);
    }

    #[test]
    fn copy_in_use_outlives_the_swap() {
        let (slots, counts) = (slots(), Counts::default());
        let pointer = Pointer::new(copy(&slots));
        let held = counts.hold(&slots, &pointer).unwrap();
        update(counts, &slots, &pointer);
        assert_eq!(slots.live(), 2);
        slots.get(held);
        counts.release(&slots, held);
        assert_eq!(slots.live(), 1);
    }

    #[test]
    fn swapped_out_copy_without_reader_is_freed() {
        let (slots, counts) = (slots(), Counts::default());
        let pointer = Pointer::new(copy(&slots));
        (0..100).for_each(|_| update(counts, &slots, &pointer));
        assert_eq!((slots.live(), slots.peak()), (1, 2));
    }

    #[test]
    fn pointer_to_no_copy_holds_none() {
        let slots = slots();
        assert_eq!(Counts::default().hold(&slots, &Pointer::new(None)), None);
    }

    #[test]
    #[should_panic(expected = "use after free: copy 1 in copy 0 is read")]
    fn swap_without_grace_frees_a_copy_in_use() {
        let (slots, counts) = (slots(), Counts::new(Some(CountedFlaw::FreedAtOnce)));
        let pointer = Pointer::new(copy(&slots));
        let held = counts.hold(&slots, &pointer).unwrap();
        update(counts, &slots, &pointer);
        slots.get(held);
    }

    #[test]
    fn readers_and_updates_side_by_side() {
        let (slots, counts) = (slots(), Counts::default());
        let pointer = Pointer::new(copy(&slots));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let held = counts.hold(&slots, &pointer).unwrap();
                        slots.get(held);
                        counts.release(&slots, held);
                    }
                });
            }
            (0..20_000).for_each(|_| update(counts, &slots, &pointer));
        });
        assert_eq!(slots.live(), 1);
    }
}
