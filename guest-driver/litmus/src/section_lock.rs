// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! May a free skip a mark that it finds set?
//!
//! With `section-bit` a free looks at its section's bit under the zone's lock (`Mm::hook_for`), puts the
//! block on its list, and does not mark if the bit was set. The reporter clears the bit, takes and
//! releases the zone's lock (`Mm::pass_zone_locks`), and looks for free blocks.

use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use loom::sync::atomic::fence;
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::Executions;

/// When the free looks at the bit.
#[derive(Clone, Copy)]
enum Look {
    BeforeBlock,
    AfterBlock,
}

/// What the reporter does between clearing the bit and looking for free blocks.
#[derive(Clone, Copy, PartialEq)]
enum Between {
    Nothing,
    PassLock,
    /// The lock of another zone of the section.
    PassOtherLock,
    /// A fence there, and one between the free's block and its look.
    Fences,
}

#[derive(Clone, Copy)]
struct Program {
    look: Look,
    between: Between,
}

const MODEL: Program = Program { look: Look::BeforeBlock, between: Between::PassLock };

impl Program {
    fn run(self) -> bool {
        let free = Arc::new(AtomicBool::new(false));
        let bit = Arc::new(AtomicBool::new(true));
        let zone = Arc::new(Mutex::new(()));
        let freer = thread::spawn({
            let (free, bit, zone) = (Arc::clone(&free), Arc::clone(&bit), Arc::clone(&zone));
            move || {
                let _locked = zone.lock().unwrap();
                let set = match self.look {
                    Look::BeforeBlock => {
                        let set = bit.load(Relaxed);
                        free.store(true, Relaxed);
                        set
                    }
                    Look::AfterBlock => {
                        free.store(true, Relaxed);
                        if self.between == Between::Fences {
                            fence(SeqCst);
                        }
                        bit.load(Relaxed)
                    }
                };
                if !set {
                    bit.fetch_or(true, AcqRel);
                }
            }
        });
        bit.swap(false, AcqRel);
        match self.between {
            Between::Nothing => {}
            Between::PassLock => drop(zone.lock().unwrap()),
            Between::PassOtherLock => drop(Mutex::new(()).lock().unwrap()),
            Between::Fences => fence(SeqCst),
        }
        let reported = free.load(Relaxed);
        freer.join().unwrap();
        !reported && !bit.load(Relaxed)
    }

    fn executions(self) -> Executions {
        Executions::of(move || self.run())
    }
}

#[test]
fn passing_the_zone_lock_keeps_the_report() {
    assert!(!MODEL.executions().lose());
}

#[test]
fn no_lock_of_the_reporter_loses_the_report() {
    assert!(Program { between: Between::Nothing, ..MODEL }.executions().lose());
}

#[test]
fn lock_of_another_zone_loses_the_report() {
    assert!(Program { between: Between::PassOtherLock, ..MODEL }.executions().lose());
}

#[test]
fn fences_with_an_early_look_lose_the_report() {
    assert!(Program { between: Between::Fences, ..MODEL }.executions().lose());
}

/// No sequentially consistent order loses it: the explorer cannot show this.
#[test]
fn late_look_without_fences_loses_the_report() {
    let program = Program { look: Look::AfterBlock, between: Between::Nothing };
    assert!(program.executions().lose());
}

#[test]
fn late_look_with_fences_keeps_the_report() {
    let program = Program { look: Look::AfterBlock, between: Between::Fences };
    assert!(!program.executions().lose());
}
