// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What came of it, as a table and as a curve.

use charts::{Chart, Line};
use comfy_table::{CellAlignment, Table, presets};

use crate::fleet::Compared;
use crate::host::Outcome;

/// A table with a row for each kind of host.
pub fn table(compared: &[Compared]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "overcommit",
        "hosts",
        "memory of hosts, TiB",
        "VMs lost",
        "guest OOMs",
        "below reserve, ‰",
        "waits for disk, ‰",
        "pressure",
        "to and fro",
        "moves",
    ]);
    for compared in compared {
        for (name, outcome) in [
            ("enough memory", &compared.sized),
            ("reporting", &compared.reporting),
            ("policy", &compared.policy),
        ] {
            table.add_row(row(compared.overcommit_percent, name, outcome));
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string() + "\n"
}

/// What the policy costs by overcommit, as an SVG file: of a thousand guests in a day.
pub fn curve(compared: &[Compared], days: f64) -> String {
    let of = |count: fn(&Outcome) -> u64| -> Vec<(f64, f64)> {
        let point = |compared: &Compared| {
            let outcome = &compared.policy;
            let guest_days = outcome.guests as f64 * days;
            let overcommit = compared.overcommit_percent as f64 / 100.0;
            (overcommit, count(outcome) as f64 / guest_days * 1000.0)
        };
        compared.iter().map(point).collect()
    };
    let lost = of(|outcome| outcome.lost_vms);
    let pressure = of(|outcome| outcome.pressure.values().sum());
    let oom = of(|outcome| outcome.guest_ooms);
    let lines =
        [("VMs lost", &lost), ("signs of pressure", &pressure), ("OOM kills in guests", &oom)];
    let lines = lines.into_iter().enumerate().map(|(style, (name, points))| Line {
        name: name.to_owned(),
        points,
        style,
        computed: false,
    });
    let chart = Chart {
        title: "The policy by overcommit: of 1000 guests in a simulated day".to_owned(),
        x_unit: "memory of the guests to that of the hosts",
        y_unit: "",
        lines: lines.collect(),
        range: Vec::new(),
    };
    chart.file()
}

fn row(percent: u64, name: &str, outcome: &Outcome) -> [String; 10] {
    [
        format!("{}.{:02}", percent / 100, percent % 100),
        name.to_owned(),
        format!("{:.2}", outcome.host_bytes as f64 / (1_u64 << 40) as f64),
        outcome.lost_vms.to_string(),
        outcome.guest_ooms.to_string(),
        format!("{:.1}", outcome.below_reserve_permille),
        format!("{:.2}", outcome.stalled_permille),
        outcome.pressure.values().sum::<u64>().to_string(),
        outcome.oscillations.to_string(),
        outcome.moves.to_string(),
    ]
}
