// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scenarios with real threads, and the lists.

use super::{Holds, Reporting};
use crate::{Invariant, Kind, cases};

#[test]
fn good_configurations_hold_with_real_threads() {
    for case in cases::<Reporting>().iter().filter(|case| case.kind == Kind::Good) {
        for seed in 0..50 {
            assert_eq!(case.run(seed), Ok(()), "{} of seed {seed}", case.name);
        }
    }
}

#[test]
fn every_invariant_is_documented() {
    let page = include_str!("../../../../../docs/design/model.md");
    for invariant in Holds::ALL {
        assert!(page.contains(&format!("\n| `{invariant}` |")), "{invariant} has no row");
    }
}

#[test]
fn every_configuration_has_a_name_of_its_own() {
    let mut names: Vec<String> = cases::<Reporting>().into_iter().map(|case| case.name).collect();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn pattern_names_whole_names_only() {
    let cases = cases::<Reporting>();
    let named = |pattern: &str| cases.iter().filter(|case| case.is_named(pattern)).count();
    let one = "section-bit-isolate-churn";
    assert_eq!((named(one), named("section-bit-isolate"), named("isolate-churn")), (1, 0, 0));
    assert_eq!((named("section-bit-isolate-ch*"), named("*bit-isolate-churn")), (1, 1));
    assert_eq!((named("sec*bit*late-churn"), named("*section-bit-*isolate-churn*")), (4, 2));
    assert_eq!((named("*"), named("*-isolate-*isolate-churn")), (cases.len(), 0));
}
