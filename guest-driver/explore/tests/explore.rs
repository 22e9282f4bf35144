// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known to be wrong is found, and nothing is found in what is meant to work, in at least
//! ten times as many schedules.
#![cfg(feature = "shuttle")]

use explore::table::{Effort, Row, search_all};

#[test]
fn exploration_finds_what_is_wrong_and_nothing_else() {
    // Without optimisation a schedule takes several times as long.
    let (least, most_exhaustive) =
        if cfg!(debug_assertions) { (0, 5_000) } else { (5_000, 50_000) };
    let effort = Effort { seed: 0, most: 20_000, least, preemptions: 3, most_exhaustive };
    let results = search_all(effort, |row| println!("{}", row.line()));
    let unexpected: Vec<String> =
        results.rows().filter(|row| !row.as_expected()).map(Row::line).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}
