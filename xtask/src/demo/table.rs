// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as a table in the terminal.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{Cell, CellAlignment, Table};

use super::run::{Device, Round, Run, ratio};

/// One row of the table.
pub(super) struct Row {
    /// Its label.
    pub(super) name: &'static str,
    /// Its value for one run.
    pub(super) value: fn(&Run) -> String,
}

/// All rows, in order, of the table and of the page.
pub(super) const ROWS: &[Row] = &[
    Row { name: "guest memory", value: |run| mib(run.memory_bytes) },
    Row { name: "freed by the guest", value: |run| mib(run.freed_bytes()) },
    Row {
        name: "returned to the host",
        value: |run| format!("{} ({:.1} %)", mib(run.returned_bytes()), run.returned_percent()),
    },
    Row {
        name: "seconds until 90 % were reclaimed",
        value: |run| {
            let seconds = |round: &Round| {
                round.seconds_to_90.map_or("never".to_owned(), |s| format!("{s:.1}"))
            };
            run.rounds.iter().map(seconds).collect::<Vec<_>>().join(", ")
        },
    },
    Row {
        name: "reporting passes until then",
        value: |run| {
            run.rounds.iter().map(|round| round.passes.to_string()).collect::<Vec<_>>().join(", ")
        },
    },
    Row {
        name: "reports (chains)",
        value: |run| run.reports.map_or("not counted".to_owned(), |n| n.to_string()),
    },
    Row { name: "ranges reported", value: |run| run.ranges.to_string() },
    Row { name: "discard calls", value: |run| run.discard_calls.to_string() },
    Row { name: "contents verified", value: |run| mib(run.verified_bytes) },
    Row { name: "contents lost", value: |run| format!("{} bytes", run.lost_bytes) },
];

/// Bytes as MiB.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The table, with a column for each run.
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

/// Compares the discard calls of both in one sentence.
pub(super) fn comparison(runs: &[Run]) -> Option<String> {
    let of = |device| runs.iter().find(|run| run.device == device);
    let (ours, qemu) = (of(Device::Daemon)?, of(Device::Qemu)?);
    let each = |run: &Run| ratio(run.discard_calls, run.ranges);
    Some(format!(
        "Discard calls: {} by the daemon, {} by QEMU's device, ratio {:.3} \
         ({:.3} and {:.3} per reported range).",
        ours.discard_calls,
        qemu.discard_calls,
        ratio(ours.discard_calls, qemu.discard_calls),
        each(ours),
        each(qemu),
    ))
}
