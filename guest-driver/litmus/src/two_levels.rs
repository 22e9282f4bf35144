// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! In which order are a bit and its summary set and cleared?
//!
//! With `section-bitmap` a free sets the granule's bit, then the section's. The reporter clears the
//! section's bit, then takes the bits of its granules. A granule's bit without the section's is never
//! looked at.

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
use loom::thread;

use crate::Executions;

#[derive(Clone, Copy)]
enum First {
    Bit,
    Summary,
}

#[derive(Clone, Copy)]
struct Program {
    set_first: First,
    clear_first: First,
    set: Ordering,
    take: Ordering,
}

/// The model's are sequentially consistent; these are weaker, and enough.
const MODEL: Program =
    Program { set_first: First::Bit, clear_first: First::Summary, set: Release, take: Acquire };

impl Program {
    fn run(self) -> bool {
        let bit = Arc::new(AtomicBool::new(false));
        // Another granule of the section is marked.
        let summary = Arc::new(AtomicBool::new(true));
        let freer = thread::spawn({
            let (bit, summary) = (Arc::clone(&bit), Arc::clone(&summary));
            move || {
                let [first, second] = match self.set_first {
                    First::Bit => [bit, summary],
                    First::Summary => [summary, bit],
                };
                first.fetch_or(true, self.set);
                second.fetch_or(true, self.set);
            }
        });
        let reported = match self.clear_first {
            First::Summary => {
                summary.swap(false, self.take);
                bit.load(Relaxed) && bit.swap(false, self.take)
            }
            First::Bit => {
                let reported = bit.load(Relaxed) && bit.swap(false, self.take);
                summary.swap(false, self.take);
                reported
            }
        };
        freer.join().unwrap();
        !reported && !summary.load(Relaxed)
    }

    fn executions(self) -> Executions {
        Executions::of(move || self.run())
    }
}

#[test]
fn bit_then_summary_keeps_the_report() {
    assert!(!MODEL.executions().lose());
}

#[test]
fn summary_set_first_loses_the_report() {
    let program = Program { set_first: First::Summary, set: AcqRel, take: AcqRel, ..MODEL };
    assert!(program.executions().lose());
}

#[test]
fn summary_cleared_last_loses_the_report() {
    let program = Program { clear_first: First::Bit, set: AcqRel, take: AcqRel, ..MODEL };
    assert!(program.executions().lose());
}

#[test]
fn summary_without_release_loses_the_report() {
    assert!(Program { set: Relaxed, ..MODEL }.executions().lose());
}

#[test]
fn summary_without_acquire_loses_the_report() {
    assert!(Program { take: Relaxed, ..MODEL }.executions().lose());
}
