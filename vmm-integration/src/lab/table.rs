//! Records for a terminal.

use std::collections::BTreeMap;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};

use super::store::{CaseRecord, Figure};

/// A table for each experiment: a row for each figure, a column for each case.
pub fn render(records: &[CaseRecord]) -> String {
    let mut experiments: BTreeMap<&str, Vec<&CaseRecord>> = BTreeMap::new();
    for record in records {
        experiments.entry(&record.experiment).or_default().push(record);
    }
    let tables = experiments.into_iter().map(|(name, cases)| format!("{name}\n{}", table(&cases)));
    tables.collect::<Vec<_>>().join("\n\n")
}

/// The figures that any of the records has, in the order of their names.
pub fn rows<'a>(records: &[&'a CaseRecord]) -> BTreeMap<&'a str, &'a Figure> {
    let figures = records.iter().flat_map(|record| &record.figures);
    figures.map(|(name, figure)| (name.as_str(), figure)).collect()
}

fn table(cases: &[&CaseRecord]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    let rows = rows(cases);
    // Few figures of many cases are easier to read the other way round.
    if cases.len() > rows.len() {
        let head = rows.iter().map(|(name, figure)| title(name, &figure.unit));
        table.set_header(["".to_owned()].into_iter().chain(head));
        for record in cases {
            let cells = rows.keys().map(|name| cell(record, name));
            table.add_row([record.case.clone()].into_iter().chain(cells));
        }
    } else {
        let head = cases.iter().map(|record| record.case.clone());
        table.set_header(["".to_owned()].into_iter().chain(head));
        for (name, figure) in &rows {
            let cells = cases.iter().map(|record| cell(record, name));
            table.add_row([title(name, &figure.unit)].into_iter().chain(cells));
        }
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
