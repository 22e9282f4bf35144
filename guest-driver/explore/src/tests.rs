// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The same scenarios with real threads.

use crate::{catalogue, scenario};

#[test]
fn the_good_ones_hold_with_real_threads() {
    for configuration in catalogue::good() {
        for seed in 0..50 {
            let outcome = scenario::run(&configuration, seed);
            assert_eq!(outcome, Ok(()), "{} of seed {seed}", configuration.name);
        }
    }
}
