// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Can a reader's reference be to a copy that was freed, or to another that has its slot?
//!
//! A reader of `Counts` loads the pointer, increments the count there unless it is zero, looks whether the
//! pointer is still the same, uses the copy, and drops its reference. An update swaps the pointer and drops
//! the pointer's reference. Who drops the last one frees the slot, and another copy may have it at once.

use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
use loom::thread;

use crate::Executions;

/// What is in a slot.
const NOTHING: usize = 0;
const OURS: usize = 1;
const ANOTHER: usize = 2;

#[derive(Clone, Copy, PartialEq)]
enum Take {
    UnlessZero,
    Blindly,
}

#[derive(Clone, Copy)]
struct Program {
    take: Take,
    look_again: bool,
    /// The update waits for no reference.
    freed_at_once: bool,
    /// Loads of the pointer.
    load: Ordering,
    increment: Ordering,
    /// The first reference to a copy, after the copy was written.
    first: Ordering,
    decrement: Ordering,
}

const MODEL: Program = Program {
    take: Take::UnlessZero,
    look_again: true,
    freed_at_once: false,
    load: Acquire,
    increment: Acquire,
    first: Release,
    decrement: AcqRel,
};

#[derive(Default)]
struct Shared {
    /// The slot of the current copy.
    current: AtomicUsize,
    references: [AtomicUsize; 2],
    copies: [AtomicUsize; 2],
    /// A reader has written in the first copy.
    written: AtomicUsize,
}

impl Program {
    /// Returns whether the reader has used the first copy, and whether that was none of ours.
    fn read(self, shared: &Shared) -> (bool, bool) {
        let seen = shared.current.load(self.load);
        let references = &shared.references[seen];
        let counted = match self.take {
            Take::Blindly => {
                references.fetch_add(1, self.increment);
                true
            }
            Take::UnlessZero => {
                let add = |count: usize| (count > 0).then_some(count + 1);
                references.fetch_update(self.increment, Relaxed, add).is_ok()
            }
        };
        if !counted {
            return (false, false);
        }
        let still = !self.look_again || shared.current.load(self.load) == seen;
        let wrong = still && shared.copies[seen].load(Relaxed) != OURS;
        if still && seen == 0 {
            shared.written.store(1, Relaxed);
        }
        references.fetch_sub(1, self.decrement);
        (still && seen == 0, wrong)
    }

    /// Returns whether it has freed the first copy, and before what a reader wrote in it.
    fn update(self, shared: &Shared) -> (bool, bool) {
        shared.copies[1].store(OURS, Relaxed);
        shared.references[1].store(1, self.first);
        shared.current.swap(1, AcqRel);
        let last = shared.references[0].fetch_sub(1, self.decrement) == 1;
        if !(last || self.freed_at_once) {
            return (false, false);
        }
        let unwritten = shared.written.load(Relaxed) == 0;
        shared.copies[0].store(ANOTHER, Relaxed);
        shared.references[0].store(1, self.first);
        (true, unwritten)
    }

    fn run(self) -> bool {
        let shared = Arc::new(Shared::default());
        shared.copies[0].store(OURS, Relaxed);
        shared.copies[1].store(NOTHING, Relaxed);
        shared.references[0].store(1, Relaxed);
        let updater = thread::spawn({
            let shared = Arc::clone(&shared);
            move || self.update(&shared)
        });
        let (used, wrong) = self.read(&shared);
        let (freed, unwritten) = updater.join().unwrap();
        wrong || (used && freed && unwritten)
    }

    fn executions(self) -> Executions {
        Executions::of(move || self.run())
    }
}

#[test]
fn count_and_second_look_keep_the_copy() {
    assert!(!MODEL.executions().lose());
}

/// The count orders what the pointer leads to.
#[test]
fn relaxed_loads_of_the_pointer_keep_the_copy() {
    assert!(!Program { load: Relaxed, ..MODEL }.executions().lose());
}

#[test]
fn swap_without_grace_loses_the_copy() {
    assert!(Program { freed_at_once: true, ..MODEL }.executions().lose());
}

#[test]
fn blind_increment_loses_the_copy() {
    let program = Program { take: Take::Blindly, look_again: false, ..MODEL };
    assert!(program.executions().lose());
}

#[test]
fn count_without_second_look_loses_the_copy() {
    assert!(Program { look_again: false, ..MODEL }.executions().lose());
}

#[test]
fn increment_without_acquire_loses_the_copy() {
    assert!(Program { increment: Relaxed, ..MODEL }.executions().lose());
}

#[test]
fn first_reference_without_release_loses_the_copy() {
    assert!(Program { first: Relaxed, ..MODEL }.executions().lose());
}

#[test]
fn decrement_without_release_loses_the_copy() {
    assert!(Program { decrement: Acquire, ..MODEL }.executions().lose());
}

#[test]
fn decrement_without_acquire_loses_the_copy() {
    assert!(Program { decrement: Release, ..MODEL }.executions().lose());
}
