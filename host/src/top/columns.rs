// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The columns of the table, and which of them a width has room for.

use std::cmp::Ordering;

use super::row::Row;
use super::text::{byte_rate, harmless, pressure, rate, size_or_dash};

/// A column.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// In JSON, and what the help says.
    pub(super) about: &'static str,
    /// Of its widest usual text.
    pub(super) width: u16,
    /// Whether its text ends at the right side.
    pub(super) right: bool,
    /// Which go first where there is no room: those with the highest.
    rank: u8,
    pub(super) cell: fn(&Row) -> String,
    /// What stands first if it is sorted by this column.
    pub(super) order: fn(&Row, &Row) -> Ordering,
}

/// Largest first; what is not known last.
macro_rules! largest {
    ($field:ident) => {
        |one, other| other.$field.partial_cmp(&one.$field).unwrap_or(Ordering::Equal)
    };
}

/// All columns from left to right. The first is always shown.
pub(super) const COLUMNS: [Column; 14] = [
    Column {
        title: "GUEST",
        about: "name of the VM",
        width: 12,
        right: false,
        rank: 0,
        cell: |row| harmless(&row.name),
        order: |one, other| one.name.cmp(&other.name),
    },
    Column {
        title: "STATE",
        about: "state of the driver, or what the daemon does",
        width: 13,
        right: false,
        rank: 1,
        cell: state,
        order: |one, other| state(one).cmp(&state(other)),
    },
    Column {
        title: "MEMORY",
        about: "memory that the VMM has announced",
        width: 6,
        right: true,
        rank: 5,
        cell: |row| size_or_dash(row.memory_bytes),
        order: largest!(memory_bytes),
    },
    Column {
        title: "TARGET",
        about: "memory that is wanted in the balloon",
        width: 6,
        right: true,
        rank: 4,
        cell: |row| size_or_dash(row.reclaim_target_bytes.or(row.target_bytes)),
        order: largest!(target_bytes),
    },
    Column {
        title: "LEASE",
        about: "seconds until the target goes back to its base",
        width: 5,
        right: true,
        rank: 9,
        cell: |row| row.lease_left_seconds.map_or("-".to_owned(), |left| format!("{left:.0}s")),
        order: largest!(lease_left_seconds),
    },
    Column {
        title: "ACTUAL",
        about: "memory in the balloon, as the guest says",
        width: 6,
        right: true,
        rank: 8,
        cell: |row| size_or_dash(row.actual_bytes),
        order: largest!(actual_bytes),
    },
    Column {
        title: "USED",
        about: "the guest's memory less what is available",
        width: 6,
        right: true,
        rank: 7,
        cell: |row| size_or_dash(row.used_bytes),
        order: largest!(used_bytes),
    },
    Column {
        title: "AVAIL",
        about: "memory that the guest can use without swapping",
        width: 6,
        right: true,
        rank: 6,
        cell: |row| size_or_dash(row.available_bytes),
        order: largest!(available_bytes),
    },
    Column {
        title: "RESIDENT",
        about: "memory of the guest that the host holds",
        width: 8,
        right: true,
        rank: 2,
        cell: |row| size_or_dash(row.resident_bytes),
        order: largest!(resident_bytes),
    },
    Column {
        title: "RECLAIMED",
        about: "memory returned to the host since the counters were reset",
        width: 9,
        right: true,
        rank: 3,
        cell: |row| size_or_dash(row.reclaimed_bytes),
        order: largest!(reclaimed_bytes),
    },
    Column {
        title: "RATE",
        about: "memory returned to the host a second",
        width: 7,
        right: true,
        rank: 10,
        cell: |row| byte_rate(row.reclaimed_bytes_per_second),
        order: largest!(reclaimed_bytes_per_second),
    },
    Column {
        title: "REPORTS/s",
        about: "reports of the guest a second",
        width: 9,
        right: true,
        rank: 12,
        cell: |row| rate(row.reports_per_second),
        order: largest!(reports_per_second),
    },
    Column {
        title: "PRESSURE",
        about: "OOM kills, swap and major faults since the last look",
        width: 18,
        right: false,
        rank: 11,
        cell: |row| pressure(row.pressure),
        order: |one, other| other.pressure_rank().cmp(&one.pressure_rank()),
    },
    Column {
        title: "PAUSED BY",
        about: "why discarding is paused",
        width: 9,
        right: false,
        rank: 13,
        cell: |row| harmless(&row.paused_by.join(",")),
        order: |one, other| other.paused_by.len().cmp(&one.paused_by.len()),
    },
];

/// What an operator should know first.
fn state(row: &Row) -> String {
    match &row.driver {
        _ if row.error.is_some() => "no answer".to_owned(),
        None => "asking".to_owned(),
        _ if row.reclaim_target_bytes.is_some() => "reclaiming".to_owned(),
        _ if !row.paused_by.is_empty() => "paused".to_owned(),
        Some(driver) => harmless(driver),
    }
}

/// The indices of the columns that fit into `width`, with their widths. The name takes what its longest
/// needs, up to twice its usual width.
pub(super) fn fitting(width: u16, longest_name: usize) -> Vec<(usize, u16)> {
    let usual = COLUMNS[0].width;
    let name = u16::try_from(longest_name).unwrap_or(u16::MAX).clamp(usual, 2 * usual);
    let wide = |index: usize| if index == 0 { name } else { COLUMNS[index].width };
    let mut by_rank: Vec<usize> = (0..COLUMNS.len()).collect();
    by_rank.sort_by_key(|index| COLUMNS[*index].rank);
    let mut left = width;
    let mut shown = Vec::new();
    for index in by_rank {
        let needs = wide(index) + u16::from(!shown.is_empty()) * GAP;
        if needs > left && !shown.is_empty() {
            break;
        }
        left = left.saturating_sub(needs);
        shown.push((index, wide(index)));
    }
    shown.sort_unstable();
    shown
}

/// Spaces between two columns.
pub(super) const GAP: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_into_any_width() {
        let mut before = 0;
        for width in 0..200 {
            let shown = fitting(width, 8);
            let sum: u16 = shown.iter().map(|(_, width)| width + GAP).sum();
            assert!(shown.len() == 1 || sum - GAP <= width, "{width}: {shown:?}");
            assert!(shown.len() >= before && shown[0].0 == 0, "{width}: {shown:?}");
            before = shown.len();
        }
        assert_eq!(before, COLUMNS.len());
    }

    #[test]
    fn known_values_stand_before_unknown_ones() {
        let row = |name: &str, bytes| Row {
            name: name.to_owned(),
            resident_bytes: bytes,
            ..Row::default()
        };
        let mut rows = [row("a", None), row("b", Some(1)), row("c", Some(2))];
        let column = COLUMNS.iter().find(|column| column.title == "RESIDENT").unwrap();
        rows.sort_by(column.order);
        assert_eq!(rows.map(|row| row.name), ["c", "b", "a"]);
    }
}
