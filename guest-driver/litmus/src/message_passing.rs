// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Must the mark be set after the block is on its list, and with which barriers?
//!
//! A free puts a block on its list and marks the bitmap (`Bits::set`). The reporter takes the mark
//! (`Bits::take`) and looks without a lock whether the block is free (`hold`). If not, it forgets it.

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
use loom::thread;

use crate::Executions;

#[derive(Clone, Copy)]
enum Order {
    BlockThenMark,
    MarkThenBlock,
}

#[derive(Clone, Copy)]
struct Program {
    order: Order,
    mark: Ordering,
    take: Ordering,
}

/// The model's are sequentially consistent; these are weaker, and enough.
const MODEL: Program = Program { order: Order::BlockThenMark, mark: Release, take: Acquire };

impl Program {
    fn run(self) -> bool {
        let free = Arc::new(AtomicBool::new(false));
        let mark = Arc::new(AtomicBool::new(false));
        let freer = thread::spawn({
            let (free, mark) = (Arc::clone(&free), Arc::clone(&mark));
            move || match self.order {
                Order::BlockThenMark => {
                    free.store(true, Relaxed);
                    mark.fetch_or(true, self.mark);
                }
                Order::MarkThenBlock => {
                    mark.fetch_or(true, self.mark);
                    free.store(true, Relaxed);
                }
            }
        });
        let reported = mark.swap(false, self.take) && free.load(Relaxed);
        freer.join().unwrap();
        !reported && !mark.load(Relaxed)
    }

    fn executions(self) -> Executions {
        Executions::of(move || self.run())
    }
}

#[test]
fn mark_after_block_keeps_the_report() {
    assert!(!MODEL.executions().lose());
}

#[test]
fn mark_before_block_loses_the_report() {
    let program = Program { order: Order::MarkThenBlock, mark: AcqRel, take: AcqRel };
    assert!(program.executions().lose());
}

#[test]
fn mark_without_release_loses_the_report() {
    assert!(Program { mark: Relaxed, ..MODEL }.executions().lose());
}

#[test]
fn take_without_acquire_loses_the_report() {
    assert!(Program { take: Relaxed, ..MODEL }.executions().lose());
}
