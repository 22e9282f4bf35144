// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guests as text for a pipe, and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::app::App;
use super::columns::{COLUMNS, fitting};
use super::draw::aligned;
use super::host::Host;
use super::row::Row;
use super::text::size_or_dash;

/// What `--json` prints.
#[derive(Serialize)]
struct Whole<'a> {
    host: &'a Host,
    guests: Vec<&'a Row>,
}

/// One JSON text.
pub(super) fn json(app: &App) -> String {
    let whole = Whole { host: &app.host, guests: app.rows() };
    // No map in it has keys other than text.
    serde_json::to_string(&whole).unwrap_or_default() + "\n"
}

/// A table with all columns; what is wrong with a daemon is below it.
pub(super) fn table(app: &App) -> String {
    let rows = app.rows();
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let shown = fitting(u16::MAX, longest);
    let mut text = format!(
        "Host: {} of {} available\n",
        size_or_dash(app.host.available_bytes),
        size_or_dash(app.host.total_bytes)
    );
    let mut line = |cell: &dyn Fn(usize) -> String| {
        let cells = shown
            .iter()
            .map(|(index, width)| aligned(&cell(*index), *width, COLUMNS[*index].right));
        let cells = cells.collect::<Vec<_>>().join("  ");
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", cells.trim_end());
    };
    line(&|index| COLUMNS[index].title.to_owned());
    for row in &rows {
        line(&|index| (COLUMNS[index].cell)(row));
    }
    for row in rows {
        if let Some(error) = &row.error {
            let _ = writeln!(text, "{}: {}", row.name, super::text::harmless(error));
        }
    }
    text
}
