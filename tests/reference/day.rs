// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One daemon for a day of its clock: what it does not give back adds up.

use std::fs;
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use crate::daemon::Daemon;
use crate::guest::TIMEOUT;
use crate::model::{Reference, Step};
use crate::{alone, clock};

const HOUR: Duration = Duration::from_secs(3600);
/// After this its tables and buffers have the size that they keep.
const WARM: Duration = HOUR.saturating_mul(4);
const DAY: Duration = HOUR.saturating_mul(24);
/// Of which a day comes about: an hour passes with each 160, on the average.
const STEPS: usize = 8_000;
/// What the heap may have grown by in twenty hours. What a thread has freed and keeps for itself counts.
const GROWTH: usize = 64 << 10;

/// Descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of the heap in use.
fn heap() -> usize {
    // SAFETY: it takes nothing, and returns numbers.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// The steps of a daemon that is neither ended nor kept from its memory.
fn of_a_day(start: &Reference, steps: Vec<Step>) -> Vec<(Step, Reference)> {
    let (mut state, mut passed) = (start.clone(), Duration::ZERO);
    let mut taken = Vec::new();
    for step in steps {
        let ends = matches!(step, Step::KillOverReport { .. } | Step::Seal);
        if ends || !Reference::preconditions(&state, &step) {
            continue;
        }
        if let Step::Advance { seconds } = step {
            passed += Duration::from_secs(seconds.into());
        }
        state = Reference::apply(state, &step);
        taken.push((step, state.clone()));
        if passed >= DAY {
            return taken;
        }
    }
    panic!("these steps take {passed:?}");
}

#[test]
fn daemon_lives_through_a_day() {
    let _alone = alone();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[24; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = Reference::sequential_strategy(STEPS).new_tree(&mut runner).unwrap();
    let (start, steps, _) = steps.current();
    let steps = of_a_day(&start, steps);
    let (mut hour, mut warm) = (0, 0);
    let before = descriptors();
    let count = steps.len();
    let mut daemon = Daemon::init_test(&start);
    let begin = clock::forward();
    // They stay until the end, so that only the daemon's part of the heap changes.
    for (step, reference) in &steps {
        daemon = Daemon::apply(daemon, reference, step.clone());
        Daemon::check_invariants(&daemon, reference);
        let passed = clock::forward() - begin;
        if warm == 0 && passed >= WARM {
            warm = heap();
        }
        if passed >= HOUR * (hour + 1) {
            hour = u32::try_from(passed.as_secs() / HOUR.as_secs()).unwrap();
            println!("hour {hour}: {} bytes of heap, {} descriptors", heap(), descriptors());
        }
    }
    let grown = heap().saturating_sub(warm);
    drop(daemon);
    println!(
        "{count} steps; the heap has grown by {grown} bytes since hour {}",
        WARM.as_secs() / 3600
    );
    assert!(clock::forward() - begin >= DAY);
    assert!(grown < GROWTH, "the heap has grown by {grown} bytes");
    // Threads that end close theirs.
    let until = Instant::now() + TIMEOUT;
    while descriptors() != before {
        assert!(Instant::now() < until, "{} descriptors, and {before} before", descriptors());
        std::thread::yield_now();
    }
}
