// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as a table in the terminal.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{Cell, CellAlignment, Table};

use super::measure::Run;

/// One row of the table: what it says, and how each run fills it.
pub(super) struct Row {
    /// What the row says.
    pub(super) name: &'static str,
    /// Its text for one run.
    pub(super) value: fn(&Run) -> String,
}

/// Every row, in order; the page shows the same.
pub(super) const ROWS: &[Row] = &[
    Row { name: "guest memory", value: |run| mib(run.memory_bytes) },
    Row { name: "freed by the guest", value: |run| mib(run.freed_bytes()) },
    Row {
        name: "returned to the host",
        value: |run| format!("{} ({:.1} %)", mib(run.returned_bytes()), run.returned_percent()),
    },
    Row {
        name: "seconds until 90 % were back",
        value: |run| {
            let seconds = |round: &super::measure::Round| {
                round.seconds_to_90.map_or("never".to_owned(), |s| format!("{s:.1}"))
            };
            run.rounds.iter().map(seconds).collect::<Vec<_>>().join(", ")
        },
    },
    Row {
        name: "passes until then",
        value: |run| {
            run.rounds.iter().map(|round| round.passes.to_string()).collect::<Vec<_>>().join(", ")
        },
    },
    Row {
        name: "reports (chains)",
        value: |run| run.reports.map_or("not counted".to_owned(), |n| n.to_string()),
    },
    Row { name: "ranges reported", value: |run| run.ranges.to_string() },
    Row { name: "discarding calls", value: |run| run.discard_calls.to_string() },
    Row { name: "contents verified", value: |run| mib(run.verified_bytes) },
    Row { name: "contents lost", value: |run| format!("{} bytes", run.lost_bytes) },
];

/// Bytes as MiB.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The table, a column a run.
pub(super) fn render(runs: &[Run]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    let names = runs.iter().map(|run| run.device.to_string());
    table.set_header([String::new()].into_iter().chain(names));
    for row in ROWS {
        let values =
            runs.iter().map(|run| Cell::new((row.value)(run)).set_alignment(CellAlignment::Right));
        table.add_row([Cell::new(row.name)].into_iter().chain(values));
    }
    table
}

/// The calls of both in one sentence.
pub(super) fn comparison(ours: &Run, qemu: &Run) -> String {
    let each = |run: &Run| ratio(run.discard_calls, run.ranges);
    format!(
        "Discarding calls: {} here, {} in QEMU's device, {:.3} times as many \
         ({:.3} and {:.3} a reported range).",
        ours.discard_calls,
        qemu.discard_calls,
        ratio(ours.discard_calls, qemu.discard_calls),
        each(ours),
        each(qemu),
    )
}

/// One number over another, zero if there is nothing to divide by.
#[allow(clippy::cast_precision_loss)] // for people to read
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
