// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The same scenarios with real threads, and the lists.

use crate::Invariant;
use crate::scenarios::reporting::{catalogue, scenario};

#[test]
fn the_good_ones_hold_with_real_threads() {
    for configuration in catalogue::good() {
        for seed in 0..50 {
            let outcome = scenario::run(&configuration, seed);
            assert_eq!(outcome, Ok(()), "{} of seed {seed}", configuration.name);
        }
    }
}

#[test]
fn every_invariant_is_documented() {
    let page = include_str!("../../../docs/design/model.md");
    for invariant in Invariant::ALL {
        assert!(page.contains(&format!("\n| `{invariant}` |")), "{invariant} has no row");
    }
}

#[test]
fn every_configuration_has_a_name_of_its_own() {
    let mut names: Vec<String> = catalogue::all().into_iter().map(|c| c.name).collect();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}
