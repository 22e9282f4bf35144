//! Records for a terminal.

use std::collections::BTreeMap;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::store::{CaseRecord, Figure};

/// Tables of figures, a column for each case. Cases of an experiment whose names end alike, and have
/// the same figures therefore, make one.
pub fn render(records: &[CaseRecord]) -> String {
    let tables = groups(records).into_iter().map(|group| {
        let kind = if group.kind.is_empty() { String::new() } else { format!(": {}", group.kind) };
        format!("{}{kind}\n{}", group.experiment, table(&group))
    });
    tables.collect::<Vec<_>>().join("\n\n")
}

/// Cases that can be put side by side.
pub struct Group<'a> {
    /// Their experiment.
    pub experiment: &'a str,
    /// What their names end with.
    pub kind: &'a str,
    /// What each name begins with, and its record.
    pub cases: Vec<(&'a str, &'a CaseRecord)>,
}

/// Splits the records into groups, in the order in which these begin.
pub fn groups(records: &[CaseRecord]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for record in records {
        let experiment = record.experiment.as_str();
        // Scenarios have names of their own and a verdict.
        let parts = record.case.rsplit_once('-').filter(|_| record.verdict.is_none());
        let (case, kind) = parts.unwrap_or((&record.case, ""));
        match groups.iter_mut().find(|group| (group.experiment, group.kind) == (experiment, kind)) {
            Some(group) => group.cases.push((case, record)),
            None => groups.push(Group { experiment, kind, cases: vec![(case, record)] }),
        }
    }
    groups
}

impl Group<'_> {
    /// The figures that any of the cases has, in the order of their names.
    pub fn rows(&self) -> BTreeMap<&str, &Figure> {
        let figures = self.cases.iter().flat_map(|(_, record)| &record.figures);
        figures.map(|(name, figure)| (name.as_str(), figure)).collect()
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

/// A number with as many digits as say something.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_say_something() {
        for (value, text) in
            [(0.0, "0"), (12345.6, "12346"), (3.0, "3"), (2.345, "2.35"), (0.01234, "0.0123")]
        {
            assert_eq!(number(value), text);
        }
    }
}
