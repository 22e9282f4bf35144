// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Searches many cases in rounds, until the first falls: what one of them shows soon is found before
//! much time is spent on those that do not show it.

use crate::Case;
use crate::strategies::Strategy;
use crate::table::Row;

/// Schedules of each case in the first round.
const FIRST: u64 = 24;
/// How many times as far each round goes as the one before.
const FACTOR: u64 = 8;

/// Searches `cases`, the first `schedules` schedules of each. Returns the first row in which an
/// invariant broke or a schedule was cut off, alone; all rows if there is none.
pub fn first_to_fall(cases: Vec<Case>, strategy: Strategy, schedules: u64) -> Vec<Row> {
    let (mut from, mut to) = (0, FIRST.min(schedules));
    let mut rows: Vec<Row> =
        cases.into_iter().map(|case| Row::search(case, strategy, 0..0)).collect();
    while from < to {
        for row in &mut rows {
            let more = Row::search(row.case.clone(), strategy, from..to).found;
            row.found.schedules += more.schedules;
            row.found.cut_off += more.cut_off;
            row.found.complete = more.complete;
            row.found.violation = more.violation;
            if row.found.violation.is_some() || row.found.cut_off > 0 {
                return vec![row.clone()];
            }
        }
        (from, to) = (to, to.saturating_mul(FACTOR).min(schedules));
    }
    rows
}
