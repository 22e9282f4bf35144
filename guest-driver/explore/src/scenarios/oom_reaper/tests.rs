// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scenarios with real threads, and the lists.

use super::{Holds, Reaps};
use crate::{Invariant, Kind, cases};
use guest_driver::oom_reaper::Scheme;

const PAGE: &str = include_str!("../../../../../docs/design/oom-reaper.md");

#[test]
fn good_reapers_hold_with_real_threads() {
    for case in cases::<Reaps>().iter().filter(|case| case.kind == Kind::Good) {
        for seed in 0..50 {
            assert_eq!(case.run(seed), Ok(()), "{} of seed {seed}", case.name);
        }
    }
}

#[test]
fn reaper_schemes_and_invariants_are_documented() {
    let schemes = <Scheme as strum::VariantArray>::VARIANTS.iter().map(ToString::to_string);
    let invariants = Holds::ALL.iter().map(ToString::to_string);
    for name in schemes.chain(invariants) {
        assert!(PAGE.contains(&format!("\n| `{name}` |")), "{name} has no row");
    }
}

#[test]
fn every_reaper_has_a_name_of_its_own() {
    let mut names: Vec<String> = cases::<Reaps>().into_iter().map(|case| case.name).collect();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}
