// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What two threads of the daemon share, in every interleaving of them.
//!
//! The daemon's own files are compiled here a second time, over the locks and atomics of
//! [loom](https://docs.rs/loom): they take theirs from `crate::lock`. loom runs a program in every order of
//! its steps that gives another result, and in every value that the memory model lets an atomic have. It
//! fails where two threads touch a cell at once, where all wait, and where one never ends.
//!
//! | file | question |
//! |---|---|
//! | [`writers_first`] | does the control thread get the memory map from a worker that never stops? |
//! | [`inhibit`] | is a discard under way when a pause or a pin is answered? |
//! | [`turns`] | does a message of the frontend go before the worker's next chain? |
//! | [`owed`] | is the driver notified of each returned chain? |
//! | [`in_turn`] | can the record for the next daemon fall behind the device? |
//!
//! The numbers are in `docs/research/proofs.md`.

#![expect(clippy::unwrap_used, reason = "the programs are tests")]

mod discard;
mod hand_over;
mod lock;
mod metrics;
mod vring;
mod wake;

pub mod in_turn;
pub mod inhibit;
pub mod owed;
pub mod turns;
pub mod writers_first;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `program` in every interleaving and returns how many there are.
fn explore(program: impl Fn() + Send + Sync + 'static) -> usize {
    let explored = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&explored);
    loom::model(move || {
        count.fetch_add(1, Ordering::Relaxed);
        program();
    });
    explored.load(Ordering::Relaxed)
}
