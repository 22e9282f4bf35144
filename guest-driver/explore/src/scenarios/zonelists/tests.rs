// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scenarios with real threads, and the lists.

use super::{Holds, Updates};
use crate::{Invariant, Kind, cases};

#[test]
fn good_zonelists_hold_with_real_threads() {
    for case in cases::<Updates>().iter().filter(|case| case.kind == Kind::Good) {
        for seed in 0..50 {
            assert_eq!(case.run(seed), Ok(()), "{} of seed {seed}", case.name);
        }
    }
}

#[test]
fn every_zonelist_invariant_is_documented() {
    let page = include_str!("../../../../../docs/design/model.md");
    for invariant in Holds::ALL {
        assert!(page.contains(&format!("\n| `{invariant}` |")), "{invariant} has no row");
    }
}

#[test]
fn every_zonelist_case_has_a_name_of_its_own() {
    let mut names: Vec<String> = cases::<Updates>().into_iter().map(|case| case.name).collect();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}
