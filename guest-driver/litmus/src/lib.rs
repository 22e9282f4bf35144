// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which memory orderings the lockless steps of the guest model need.
//!
//! The explorer runs a model in sequentially consistent order: each step is visible to every thread at
//! once. A processor and a compiler keep less order. Each file here has one question: a program of two
//! threads, cut down to the atomics and locks of one step of the model, with its orderings as a value.
//! [loom](https://docs.rs/loom) runs the program in every execution that the orderings allow. One test
//! shows that the model's orderings lose no report and free no copy in use, others that weaker ones do.
//!
//! | file | question |
//! |---|---|
//! | `counted` | can a reference be to a copy that was freed, or to another in its place? |
//! | `epochs` | can a copy be freed while a reader uses it that is counted by epoch? |
//! | `message_passing` | must the mark be set after the block is on its list, and with which barriers? |
//! | `request` | can a free neither be seen by a pass nor request another? |
//! | `section_lock` | may a free skip a mark that it finds set? |
//! | `swap` | can a mark reach a bitmap that was swapped out and scanned? |
//! | `two_levels` | in which order are a bit and its summary set and cleared? |
//!
//! The answers are in the section *Memory order* of `docs/design/model.md`.
//!
//! # Limits
//!
//! loom takes a sequentially consistent access for an acquire or a release. Where two threads each write
//! one location and read the other's, it needs a fence: the programs have one there. C++ and Rust
//! guarantee the same if all four accesses are sequentially consistent, as they are in the model; a test
//! of `request` shows that loom is stricter. loom does not reorder a load behind a later store of the
//! same thread. The programs say nothing about loops, or about code around the step. They follow the
//! memory model of C++, which is not Linux's: the table names the barrier that Linux has for the place.

#[cfg(test)]
mod counted;
#[cfg(test)]
mod epochs;
#[cfg(test)]
mod message_passing;
#[cfg(test)]
mod request;
#[cfg(test)]
mod section_lock;
#[cfg(test)]
mod swap;
#[cfg(test)]
mod two_levels;

#[cfg(test)]
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering};

/// What became of the report, or of the copy that a reader uses, in all executions of a program.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Executions {
    /// Executions in which the block was reported, or a later pass reports it; in which the copy stayed.
    kept: usize,
    /// Executions in which the block is free and no pass reports it; in which the copy was freed in use.
    lost: usize,
}

#[cfg(test)]
impl Executions {
    /// Runs `program` in every execution. It returns whether report or copy was lost.
    fn of(program: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let counted = Arc::clone(&counts);
        loom::model(move || {
            counted[usize::from(program())].fetch_add(1, Ordering::Relaxed);
        });
        let [kept, lost] = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert!(kept > 0, "no execution keeps it: the program is wrong");
        Self { kept, lost }
    }

    /// Whether some execution loses it.
    fn lose(self) -> bool {
        self.lost > 0
    }
}
