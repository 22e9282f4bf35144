// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of what guests, VMMs, operators, time and faults do, run against a real daemon and a
//! model of it: what may be discarded when, what an answer promises, and what is owed.
//!
//! | file | idea |
//! |---|---|
//! | `memory` | the guest's memory, and spans of it |
//! | `model` | the reference, and the steps |
//! | `home` | the daemon: in this process, or under a keeper |
//! | `calls` | system calls of a daemon in this process that fail on purpose |
//! | `clock` | its clock |
//! | `guest` | what a VMM and its guest do for a step |
//! | `operator` | what operators do |
//! | `day` | one daemon for a day of its clock |
//! | `daemon` | a step with the real daemon, and the look at every page and at what is owed |
//! | `run` | sequences, their seeds and their numbers |
//! | `seen` | steps by kind |
//!
//! A sequence that fails is shrunk and printed. `cargo test` runs the same short ones each time, and
//! `cargo xtask reference` others.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

mod calls;
mod clock;
mod daemon;
mod day;
mod guest;
mod home;
mod memory;
mod model;
mod operator;
mod run;
mod seen;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{env, fs};

/// Steps, unless the environment says how many.
const STEPS: u64 = 1_500;
const SEED: u64 = 1;

/// A number of the environment, as `cargo xtask reference` sets it.
fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Calls, clock, heap and descriptors are those of the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn daemon_does_what_the_reference_does() {
    let _alone = alone();
    let steps = number("REFERENCE_STEPS");
    let seed = number("REFERENCE_SEED").unwrap_or(SEED);
    let done = run::run(seed, steps.unwrap_or(STEPS), steps.is_some());
    match env::var_os("REFERENCE_JSON") {
        Some(path) => fs::write(path, format!("{}\n", done.json())).unwrap(),
        None => println!("{done}"),
    }
}
