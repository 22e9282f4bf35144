// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copies that are freed when all readers of before the swap are through, counted a CPU and an epoch.
//!
//! A reader counts itself in a cache line of its CPU, so that readers share none. It may sleep, as an
//! allocation does in reclaim: the scheme is SRCU's, with two epochs that take turns. Nothing waits for a
//! grace period. The next update finds that one has ended, or [`Epochs::flush`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use super::pointer::{Grace, Pointer};
use super::slots::{Handle, Slots};
use crate::sync::{AtomicUsize, Lock, Ordering};

/// A mistake that is put there to be found.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum EpochFlaw {
    /// What is retired is freed at once: a swap without grace.
    FreedAtOnce,
    /// A grace period waits for the readers of the epoch that ends with it only. A reader that looked which
    /// epoch it is and was held up joins one that has been waited for.
    OneEpoch,
    /// What is retired during a grace period is freed with it, though readers may have come before.
    JoinsLate,
}

/// A CPU's readers, by epoch. They have a cache line of their own, two since processors fetch pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Readers([AtomicUsize; 2]);

/// How far a grace period is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is none.
    Idle,
    /// It waits for readers of the other epoch, which began before the last turn or joined late.
    OfOther,
    /// It has turned epochs, and waits for those of the one before.
    OfBefore,
}

#[derive(Debug)]
struct Period<R> {
    stage: Stage,
    /// Freed as the grace period ends.
    waiting: Vec<R>,
    /// Retired since it began.
    next: Vec<R>,
}

/// Readers by CPU and epoch, and what waits for them.
#[derive(Debug)]
pub struct Epochs<R> {
    now: AtomicUsize,
    cpus: Box<[Readers]>,
    grace: Lock<Period<R>>,
    flaw: Option<EpochFlaw>,
}

/// A reader's section, to be ended by [`Epochs::leave`].
#[derive(Debug)]
#[must_use = "nothing is ever freed"]
pub struct Section {
    cpu: usize,
    epoch: usize,
}

impl<R> Epochs<R> {
    /// Without readers, on `cpus` CPUs.
    pub fn new(cpus: usize, flaw: Option<EpochFlaw>) -> Self {
        let grace = Period { stage: Stage::Idle, waiting: Vec::new(), next: Vec::new() };
        Self {
            now: AtomicUsize::new(0),
            cpus: core::iter::repeat_with(Readers::default).take(cpus.max(1)).collect(),
            grace: Lock::new(grace),
            flaw,
        }
    }

    /// A reader on `cpu` begins (`srcu_read_lock`). What it loads from now on stays until it leaves.
    pub fn enter(&self, cpu: usize) -> Section {
        let cpu = cpu % self.cpus.len();
        let epoch = self.now.load(Ordering::Relaxed) & 1;
        // A full barrier before the reader loads a pointer, as the swap is one before the counts are read.
        self.cpus[cpu].0[epoch].fetch_add(1, Ordering::SeqCst);
        Section { cpu, epoch }
    }

    /// It is through (`srcu_read_unlock`).
    pub fn leave(&self, section: Section) {
        self.cpus[section.cpu].0[section.epoch].fetch_sub(1, Ordering::Release);
    }

    /// Whether a CPU has readers of this epoch. A reader leaves on the CPU on which it entered, so no count
    /// can be missed between two.
    fn has_readers(&self, epoch: usize) -> bool {
        self.cpus.iter().any(|cpu| cpu.0[epoch].load(Ordering::SeqCst) > 0)
    }

    /// Frees `retired`, which no pointer leads to any more, by `free` when all readers of now are through
    /// (`call_srcu`), and before that what waits and may be freed.
    pub fn retire(&self, retired: R, free: impl FnMut(R)) {
        {
            let mut grace = self.grace.lock();
            match self.flaw {
                Some(EpochFlaw::JoinsLate) if grace.stage != Stage::Idle => {
                    grace.waiting.push(retired);
                }
                _ => grace.next.push(retired),
            }
        }
        self.flush(free);
    }

    /// Frees what waits and may be freed.
    pub fn flush(&self, free: impl FnMut(R)) {
        let mut freed = Vec::new();
        let mut grace = self.grace.lock();
        while self.advance(&mut grace, &mut freed) {}
        drop(grace);
        freed.into_iter().for_each(free);
    }

    /// Goes a stage further. Returns whether it could.
    fn advance(&self, grace: &mut Period<R>, freed: &mut Vec<R>) -> bool {
        let now = self.now.load(Ordering::Relaxed) & 1;
        match grace.stage {
            Stage::Idle if grace.next.is_empty() => return false,
            Stage::Idle => {
                grace.waiting = mem::take(&mut grace.next);
                if self.flaw == Some(EpochFlaw::FreedAtOnce) {
                    freed.append(&mut grace.waiting);
                } else {
                    grace.stage = Stage::OfOther;
                }
            }
            Stage::OfOther => {
                if self.flaw != Some(EpochFlaw::OneEpoch) && self.has_readers(now ^ 1) {
                    return false;
                }
                self.now.store(now ^ 1, Ordering::SeqCst);
                grace.stage = Stage::OfBefore;
            }
            Stage::OfBefore => {
                if self.has_readers(now ^ 1) {
                    return false;
                }
                freed.append(&mut grace.waiting);
                grace.stage = Stage::Idle;
            }
        }
        true
    }

    /// Copies that wait to be freed.
    pub fn waiting(&self) -> usize {
        let grace = self.grace.lock();
        grace.waiting.len() + grace.next.len()
    }
}

impl<T> Grace<T> for Epochs<Handle> {
    type Section = Section;

    fn enter(&self, cpu: usize) -> Section {
        self.enter(cpu)
    }

    fn hold(&self, _slots: &Slots<T>, pointer: &Pointer) -> Option<Handle> {
        pointer.load()
    }

    fn release(&self, _slots: &Slots<T>, _copy: Handle) {}

    fn leave(&self, section: Section) {
        self.leave(section);
    }

    fn retire(&self, slots: &Slots<T>, old: Handle) {
        self.retire(old, |old| slots.free(old));
    }

    fn flush(&self, slots: &Slots<T>) {
        self.flush(|old| slots.free(old));
    }

    /// Those of the counts, a cache line pair a CPU.
    fn bytes(&self) -> usize {
        size_of_val(&*self.cpus)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::swapped::Supply;
    use alloc::vec;

    fn freed(epochs: &Epochs<u32>, of: impl FnOnce(&Epochs<u32>, &mut Vec<u32>)) -> Vec<u32> {
        let mut freed = Vec::new();
        of(epochs, &mut freed);
        freed
    }

    fn retire(epochs: &Epochs<u32>, copy: u32) -> Vec<u32> {
        freed(epochs, |epochs, freed| epochs.retire(copy, |copy| freed.push(copy)))
    }

    fn flush(epochs: &Epochs<u32>) -> Vec<u32> {
        freed(epochs, |epochs, freed| epochs.flush(|copy| freed.push(copy)))
    }

    #[test]
    fn copy_waits_for_the_readers_of_then() {
        let epochs = Epochs::new(2, None);
        let (before, other) = (epochs.enter(0), epochs.enter(1));
        assert_eq!(retire(&epochs, 7), vec![]);
        let after = epochs.enter(0);
        epochs.leave(before);
        assert_eq!(flush(&epochs), vec![]);
        epochs.leave(other);
        assert_eq!(flush(&epochs), vec![7]);
        epochs.leave(after);
    }

    #[test]
    fn copy_without_readers_is_freed_at_once() {
        let epochs = Epochs::new(2, None);
        assert_eq!(retire(&epochs, 1), vec![1]);
        assert_eq!(retire(&epochs, 2), vec![2]);
        assert_eq!(epochs.waiting(), 0);
    }

    #[test]
    fn copy_retired_meanwhile_waits_for_the_next() {
        let epochs = Epochs::new(1, None);
        let first = epochs.enter(0);
        assert_eq!(retire(&epochs, 1), vec![]);
        let second = epochs.enter(0);
        assert_eq!(retire(&epochs, 2), vec![]);
        epochs.leave(first);
        assert_eq!(flush(&epochs), vec![1]);
        epochs.leave(second);
        assert_eq!(flush(&epochs), vec![2]);
    }

    /// A reader that was held up between looking and counting joins an epoch of before.
    #[test]
    fn reader_of_a_past_epoch_is_waited_for() {
        let held_up = |epochs: &Epochs<u32>| {
            assert_eq!(retire(epochs, 1), vec![1]);
            epochs.cpus[0].0[0].fetch_add(1, Ordering::SeqCst);
            Section { cpu: 0, epoch: 0 }
        };
        let epochs = Epochs::new(1, None);
        let late = held_up(&epochs);
        assert_eq!(retire(&epochs, 2), vec![]);
        epochs.leave(late);
        assert_eq!(flush(&epochs), vec![2]);
        let flawed = Epochs::new(1, Some(EpochFlaw::OneEpoch));
        let late = held_up(&flawed);
        assert_eq!(retire(&flawed, 2), vec![2]);
        flawed.leave(late);
    }

    #[test]
    fn readers_and_updates_side_by_side() {
        let (slots, epochs) = (Slots::new("copy", || ()), Epochs::new(2, None));
        let copy = || slots.allocate(&Supply::new(), |()| {}).ok();
        let pointer = Pointer::new(copy());
        std::thread::scope(|scope| {
            for cpu in 0..2 {
                let (slots, pointer, epochs) = (&slots, &pointer, &epochs);
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let section = epochs.enter(cpu);
                        slots.get(epochs.hold(slots, pointer).unwrap());
                        epochs.leave(section);
                    }
                });
            }
            for _ in 0..20_000 {
                let old = pointer.swap(copy()).unwrap();
                Grace::retire(&epochs, &slots, old);
            }
        });
        Grace::flush(&epochs, &slots);
        assert_eq!((slots.live(), epochs.waiting()), (1, 0));
    }
}
