// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Records for a terminal.

use std::collections::BTreeMap;

pub use charts::number;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::natural::natural;
use crate::store::{CaseRecord, Figure};

/// Tables of figures, a column for each case.
pub fn render(records: &[CaseRecord]) -> String {
    let tables = groups(records).into_iter().map(|group| {
        let kind = if group.kind.is_empty() { String::new() } else { format!(": {}", group.kind) };
        format!("{}{kind}\n{}", group.experiment, table(&group))
    });
    tables.collect::<Vec<_>>().join("\n\n")
}

/// The cases of one table.
pub struct Group<'a> {
    /// Their experiment.
    pub experiment: &'a str,
    /// The table's name; empty for the experiment's only one.
    pub kind: &'a str,
    /// The heading of each column, and its record.
    pub cases: Vec<(&'a str, &'a CaseRecord)>,
}

/// Splits the records into tables, in the order in which these begin.
pub fn groups(records: &[CaseRecord]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for record in records {
        let CaseRecord { experiment, place, .. } = record;
        let same = |group: &&mut Group<'_>| {
            group.experiment == experiment.as_str() && group.kind == place.table
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.cases.push((&place.column, record)),
            None => {
                let cases = vec![(place.column.as_str(), record)];
                groups.push(Group { experiment, kind: &place.table, cases });
            }
        }
    }
    groups
}

impl Group<'_> {
    /// The figures of all cases, in natural order of their names.
    pub fn rows(&self) -> Vec<(&str, &Figure)> {
        let figures = self.cases.iter().flat_map(|(_, record)| &record.figures);
        let by_name: BTreeMap<&str, &Figure> =
            figures.map(|(name, figure)| (name.as_str(), figure)).collect();
        let mut rows: Vec<_> = by_name.into_iter().collect();
        rows.sort_by_cached_key(|(name, _)| natural(name));
        rows
    }
}

fn table(group: &Group<'_>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    let head = group.cases.iter().map(|(case, _)| (*case).to_owned());
    table.set_header([String::new()].into_iter().chain(head));
    for (name, figure) in group.rows() {
        let cells = group.cases.iter().map(|(_, record)| cell(record, name));
        table.add_row([title(name, &figure.unit)].into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn title(name: &str, unit: &str) -> String {
    if unit.is_empty() { name.to_owned() } else { format!("{name} ({unit})") }
}

fn cell(record: &CaseRecord, name: &str) -> String {
    record.figures.get(name).map_or("-".to_owned(), |figure| number(figure.value))
}
