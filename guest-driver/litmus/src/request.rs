// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Can a free neither be seen by a pass nor request another?
//!
//! A free sets a mark and asks whether a pass is requested (`Schedule::request`, one load). A pass says
//! that it is under way (`Schedule::begin`) and looks at the marks. Each writes what the other reads:
//! store buffering.

use loom::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicU8, AtomicUsize, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::Executions;

const REQUESTED: u8 = 1;
const ACTIVE: u8 = 2;

/// What keeps each thread's write before its read.
#[derive(Clone, Copy)]
enum Between {
    Nothing,
    /// `smp_mb`, in the free and in the pass.
    Fences,
    /// A fence in the free only.
    FenceOfFree,
    /// A fence in the pass only.
    FenceOfPass,
    /// The free holds the zone's lock over its steps, and the pass takes it to look.
    ZoneLock,
}

#[derive(Clone, Copy)]
struct Program {
    write: Ordering,
    read: Ordering,
    between: Between,
}

/// In the model all four accesses are sequentially consistent; loom has fences for that.
const MODEL: Program = Program { write: Relaxed, read: Relaxed, between: Between::Fences };

impl Program {
    fn run(self) -> bool {
        let state = Arc::new(AtomicU8::new(REQUESTED));
        let marks = Arc::new(AtomicUsize::new(0));
        let zone = Arc::new(Mutex::new(()));
        let freer = thread::spawn({
            let (state, marks, zone) = (Arc::clone(&state), Arc::clone(&marks), Arc::clone(&zone));
            move || {
                let locked =
                    matches!(self.between, Between::ZoneLock).then(|| zone.lock().unwrap());
                marks.fetch_or(1, self.write);
                if matches!(self.between, Between::Fences | Between::FenceOfFree) {
                    fence(SeqCst);
                }
                if state.load(self.read) != REQUESTED {
                    state.swap(REQUESTED, AcqRel);
                }
                drop(locked);
            }
        });
        state.swap(ACTIVE, self.write);
        if matches!(self.between, Between::Fences | Between::FenceOfPass) {
            fence(SeqCst);
        }
        let locked = matches!(self.between, Between::ZoneLock).then(|| zone.lock().unwrap());
        let seen = marks.load(self.read) != 0;
        drop(locked);
        freer.join().unwrap();
        !seen && state.load(Relaxed) != REQUESTED
    }

    fn executions(self) -> Executions {
        Executions::of(move || self.run())
    }
}

#[test]
fn fences_between_write_and_read_keep_the_request() {
    assert!(!MODEL.executions().lose());
}

#[test]
fn zone_lock_around_both_keeps_the_request() {
    assert!(!Program { between: Between::ZoneLock, ..MODEL }.executions().lose());
}

#[test]
fn acquire_and_release_lose_the_request() {
    let program = Program { write: AcqRel, read: Acquire, between: Between::Nothing };
    assert!(program.executions().lose());
}

#[test]
fn fence_on_one_side_loses_the_request() {
    assert!(Program { between: Between::FenceOfFree, ..MODEL }.executions().lose());
    assert!(Program { between: Between::FenceOfPass, ..MODEL }.executions().lose());
}

/// loom is stricter than C++, which forbids this execution: why the programs here have fences.
#[test]
fn loom_takes_seq_cst_for_acquire_and_release() {
    let program = Program { write: SeqCst, read: SeqCst, between: Between::Nothing };
    assert!(program.executions().lose());
}
