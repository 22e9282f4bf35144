// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sequences one after the other, each from a seed of its own, until so many steps were taken.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use serde_json::{Value, json};

use crate::calls;
use crate::clock;
use crate::daemon::Daemon;
use crate::model::Reference;
use crate::seen::steps;

/// Steps of a sequence, at the most.
const MOST_STEPS: usize = 200;
const SHRINK_FOR: Duration = Duration::from_secs(60);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Runs the sequence of this seed; one that fails is shrunk.
fn sequence(seed: u64) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 2000,
        max_shrink_time: u32::try_from(SHRINK_FOR.as_millis()).unwrap(),
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let sequences = Reference::sequential_strategy(1..MOST_STEPS);
    let run = runner.run(&sequences, |(reference, steps, seen)| {
        Daemon::test_sequential(Config::default(), reference, steps, seen);
        Ok(())
    });
    run.map_err(|error| error.to_string())
}

/// What a run has done.
pub(crate) struct Done {
    sequences: u64,
    seconds: f64,
    steps: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
}

/// Runs the sequences from a seed on until so many steps were taken.
///
/// # Panics
/// If one fails.
pub(crate) fn run(first: u64, least: u64, tells: bool) -> Done {
    let start = Instant::now();
    let mut told = start;
    for seed in first.. {
        let taken: u64 = steps().values().sum();
        if taken >= least {
            return Done {
                sequences: seed - first,
                seconds: start.elapsed().as_secs_f64(),
                steps: steps(),
                faults: calls::counts().collect(),
            };
        }
        if tells && told.elapsed() > TELL_EVERY {
            told = Instant::now();
            let rate = rate(taken, start.elapsed().as_secs_f64());
            eprintln!("{taken} of {least} steps, {rate:.0} a second, at seed {seed}");
        }
        if let Err(error) = sequence(seed) {
            panic!("{error}\nagain: cargo xtask reference --seed {seed} --steps 1");
        }
    }
    unreachable!("there are 2^64 seeds");
}

fn rate(steps: u64, seconds: f64) -> f64 {
    // Far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    let steps = steps as f64;
    steps / seconds
}

impl Done {
    fn all(&self) -> u64 {
        self.steps.values().sum()
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "steps": self.all(),
            "sequences": self.sequences,
            "seconds": self.seconds,
            "steps_a_second": rate(self.all(), self.seconds),
            "clock_seconds": clock::forward().as_secs(),
            "steps_by_kind": self.steps,
            "faults_by_kind": self.faults,
        })
    }
}

impl Display for Done {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { sequences, seconds, steps, faults } = self;
        let (all, rate) = (self.all(), rate(self.all(), *seconds));
        writeln!(f, "{all} steps in {sequences} sequences, {seconds:.1} s, {rate:.0} a second")?;
        writeln!(f, "the clock was put forward by {} s", clock::forward().as_secs())?;
        for (what, counts) in [("steps", steps), ("faults", faults)] {
            let counts = counts.iter().map(|(kind, count)| format!("{kind} {count}"));
            writeln!(f, "{what}: {}", counts.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}
