// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Can a mark reach a bitmap that was swapped out and scanned?
//!
//! With `zone-bitmap-rcu` a free counts itself, loads which bitmap is current, marks in it, and counts
//! itself out. The reporter makes the other bitmap current, waits until no free is counted, and scans the
//! first one, which it then clears.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicUsize, fence};
use loom::thread;

use crate::Executions;

#[derive(Clone, Copy)]
struct Program {
    /// The reporter waits for frees that began before the swap.
    waits: bool,
    /// Fences between entering and loading, and between swapping and waiting.
    fences: bool,
    leave: Ordering,
    see_left: Ordering,
}

/// In the model all accesses are sequentially consistent; loom has fences for that.
const MODEL: Program = Program { waits: true, fences: true, leave: Release, see_left: Acquire };

impl Program {
    fn run(self) -> bool {
        let bitmaps = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let current = Arc::new(AtomicUsize::new(0));
        let readers = Arc::new(AtomicUsize::new(0));
        let freer = thread::spawn({
            let (bitmaps, current) = (Arc::clone(&bitmaps), Arc::clone(&current));
            let readers = Arc::clone(&readers);
            move || {
                readers.fetch_add(1, AcqRel);
                if self.fences {
                    fence(SeqCst);
                }
                bitmaps[current.load(Acquire)].store(true, Relaxed);
                readers.fetch_sub(1, self.leave);
            }
        });
        current.store(1, Release);
        if self.fences {
            fence(SeqCst);
        }
        while self.waits && readers.load(self.see_left) > 0 {
            thread::yield_now();
        }
        let reported = bitmaps[0].load(Relaxed);
        freer.join().unwrap();
        !reported && !bitmaps[1].load(Relaxed)
    }

    fn executions(self) -> Executions {
        Executions::of(move || self.run())
    }
}

#[test]
fn waiting_for_readers_keeps_the_mark() {
    assert!(!MODEL.executions().lose());
}

#[test]
fn no_wait_for_readers_loses_the_mark() {
    assert!(Program { waits: false, ..MODEL }.executions().lose());
}

#[test]
fn waiting_without_fences_loses_the_mark() {
    assert!(Program { fences: false, ..MODEL }.executions().lose());
}

#[test]
fn leaving_without_release_loses_the_mark() {
    assert!(Program { leave: Relaxed, ..MODEL }.executions().lose());
}

#[test]
fn waiting_without_acquire_loses_the_mark() {
    assert!(Program { see_left: Relaxed, ..MODEL }.executions().lose());
}
