// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Can a copy be freed while a reader that is counted by epoch uses it?
//!
//! A reader of `Epochs` looks which epoch it is, counts itself there, loads the pointer, uses the copy and
//! leaves. An update swaps the pointer, looks whether the other epoch has readers, turns epochs, and looks
//! whether the one before has. It frees the copy if neither has, and otherwise waits; the program has no
//! more than that.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicUsize, fence};
use loom::thread;

use crate::Executions;

#[derive(Clone, Copy)]
struct Program {
    /// Updates in a row.
    updates: usize,
    /// Both epochs are waited for.
    both: bool,
    /// A fence between counting and loading.
    fence_of_reader: bool,
    /// A fence between swapping and looking for readers.
    fence_of_update: bool,
    leave: Ordering,
    see_left: Ordering,
}

/// In the model these accesses are sequentially consistent; loom has fences for that.
const MODEL: Program = Program {
    updates: 1,
    both: true,
    fence_of_reader: true,
    fence_of_update: true,
    leave: Release,
    see_left: Acquire,
};

#[derive(Default)]
struct Shared {
    current: AtomicUsize,
    epoch: AtomicUsize,
    readers: [AtomicUsize; 2],
    freed: [AtomicUsize; 3],
    /// The reader has written in the copy.
    written: [AtomicUsize; 3],
}

impl Program {
    /// Returns the copy that was used, and whether it had been freed.
    fn read(self, shared: &Shared) -> (usize, bool) {
        let epoch = shared.epoch.load(Relaxed);
        shared.readers[epoch].fetch_add(1, AcqRel);
        if self.fence_of_reader {
            fence(SeqCst);
        }
        let copy = shared.current.load(Acquire);
        let freed = shared.freed[copy].load(Relaxed) == 1;
        shared.written[copy].store(1, Relaxed);
        shared.readers[epoch].fetch_sub(1, self.leave);
        (copy, freed)
    }

    /// Returns the copies that it has freed before a reader wrote in them.
    fn update(self, shared: &Shared) -> [bool; 3] {
        let mut unwritten = [false; 3];
        for (old, unwritten) in unwritten.iter_mut().enumerate().take(self.updates) {
            shared.current.swap(old + 1, AcqRel);
            if self.fence_of_update {
                fence(SeqCst);
            }
            let epoch = shared.epoch.load(Relaxed);
            if self.both && shared.readers[epoch ^ 1].load(self.see_left) > 0 {
                break;
            }
            shared.epoch.store(epoch ^ 1, Release);
            if shared.readers[epoch].load(self.see_left) > 0 {
                break;
            }
            *unwritten = shared.written[old].load(Relaxed) == 0;
            shared.freed[old].store(1, Relaxed);
        }
        unwritten
    }

    fn run(self) -> bool {
        let shared = Arc::new(Shared::default());
        let updater = thread::spawn({
            let shared = Arc::clone(&shared);
            move || self.update(&shared)
        });
        let (copy, freed) = self.read(&shared);
        let unwritten = updater.join().unwrap();
        freed || unwritten[copy]
    }

    fn executions(self) -> Executions {
        Executions::of(move || self.run())
    }
}

#[test]
fn counts_of_both_epochs_keep_the_copy() {
    assert!(!MODEL.executions().lose());
    assert!(!Program { updates: 2, ..MODEL }.executions().lose());
}

/// The reader is held up between looking and counting.
#[test]
fn count_of_one_epoch_loses_the_second_copy() {
    let program = Program { both: false, ..MODEL };
    assert!(!program.executions().lose());
    assert!(Program { updates: 2, ..program }.executions().lose());
}

#[test]
fn fence_on_one_side_loses_the_copy() {
    assert!(Program { fence_of_reader: false, ..MODEL }.executions().lose());
    assert!(Program { fence_of_update: false, ..MODEL }.executions().lose());
}

#[test]
fn leaving_without_release_loses_the_copy() {
    assert!(Program { leave: Relaxed, ..MODEL }.executions().lose());
}

#[test]
fn looking_without_acquire_loses_the_copy() {
    assert!(Program { see_left: Relaxed, ..MODEL }.executions().lose());
}
