// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of memory use, reports, requests of frontend and operator, and restarts, run against a
//! real daemon and a model of what it may discard when. Contents are the proof.
//!
//! | file | idea |
//! |---|---|
//! | `model` | the reference, and the steps |
//! | `daemon` | the same steps with a real daemon, and the look at every page |
//!
//! A sequence that fails is shrunk and printed. Each run has the same sequences. `PROPTEST_CASES=20000` runs
//! as many others, of 50 steps each on the average, from the seed in `PROPTEST_RNG_SEED` if that is set.

mod daemon;
mod model;

use proptest::test_runner::{Config, RngSeed};
use proptest_state_machine::prop_state_machine;

use daemon::Daemon;

/// Sequences, unless the environment says how many.
const SEQUENCES: u32 = 60;

fn config() -> Config {
    let given = Config::default();
    // The same sequences each time, unless the environment says otherwise.
    let (cases, rng_seed) = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => (given.cases, given.rng_seed),
        None => (SEQUENCES, RngSeed::Fixed(1)),
    };
    // The sequence that it prints is enough to repeat it.
    let (max_shrink_iters, max_shrink_time) = (400, 30_000);
    Config {
        cases,
        rng_seed,
        failure_persistence: None,
        max_shrink_iters,
        max_shrink_time,
        ..Config::default()
    }
}

prop_state_machine! {
    #![proptest_config(config())]
    #[test]
    fn daemon_discards_what_the_reference_does(sequential 1..100 => Daemon);
}
