// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Records for a terminal.

use std::collections::BTreeMap;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::parameters::Size;
use super::store::{CaseRecord, Figure};

/// Tables of figures, a column for each case. Cases of an experiment whose names end alike make one,
/// or those whose names begin alike where the others have not the same figures.
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
    /// What their names end with, or begin with.
    pub kind: &'a str,
    /// The rest of each name, and its record.
    pub cases: Vec<(&'a str, &'a CaseRecord)>,
}

/// Splits the records into groups, in the order in which these begin.
pub fn groups(records: &[CaseRecord]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for record in records {
        let experiment = record.experiment.as_str();
        if groups.iter().any(|group| group.experiment == experiment) {
            continue;
        }
        let all = || records.iter().filter(|record| record.experiment == experiment);
        let by_last = split(all(), |case| case.rsplit_once('-'));
        if by_last.iter().all(Group::is_alike) {
            groups.extend(by_last);
        } else {
            groups
                .extend(split(all(), |case| case.split_once('-').map(|(kind, case)| (case, kind))));
        }
    }
    groups
}

/// Groups by the kind that `parts` finds in a name, beside what the case is called in the group.
fn split<'a>(
    records: impl Iterator<Item = &'a CaseRecord>,
    parts: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for record in records {
        // Scenarios have names of their own and a verdict.
        let (case, kind) = Some(record.case.as_str())
            .filter(|_| record.verdict.is_none())
            .and_then(&parts)
            .unwrap_or((&record.case, ""));
        match groups.iter_mut().find(|group| group.kind == kind) {
            Some(group) => group.cases.push((case, record)),
            None => {
                let experiment = &record.experiment;
                groups.push(Group { experiment, kind, cases: vec![(case, record)] });
            }
        }
    }
    groups
}

impl Group<'_> {
    /// Whether all cases that have figures have the same.
    fn is_alike(&self) -> bool {
        let mut names = self.cases.iter().map(|(_, record)| record.figures.keys());
        let first = names.find(|keys| keys.len() > 0);
        first.is_none_or(|first| names.all(|other| other.len() == 0 || other.eq(first.clone())))
    }

    /// The figures that any of the cases has, in the order of their names, numbers in these by what
    /// they are worth.
    pub fn rows(&self) -> Vec<(&str, &Figure)> {
        let figures = self.cases.iter().flat_map(|(_, record)| &record.figures);
        let by_name: BTreeMap<&str, &Figure> =
            figures.map(|(name, figure)| (name.as_str(), figure)).collect();
        let mut rows: Vec<_> = by_name.into_iter().collect();
        rows.sort_by_cached_key(|(name, _)| natural(name));
        rows
    }
}

/// What a name is sorted by: its numbers by what they are worth (4.1-2 before 4.1-11) and its sizes
/// by bytes (256G before 1T), all else by letter.
pub fn natural(name: &str) -> Vec<(String, u64)> {
    let word = |word: &str| {
        let text: String = word.chars().take_while(|c| !c.is_ascii_digit()).collect();
        let number = &word[text.len()..];
        match number.parse::<Size>() {
            Ok(Size(worth)) => (text, worth),
            Err(()) => (word.to_owned(), 0),
        }
    };
    name.split(|c: char| !c.is_ascii_alphanumeric()).map(word).collect()
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

    #[test]
    fn numbers_and_sizes_in_names_are_sorted_by_what_they_are_worth() {
        for sorted in [
            vec!["busy-1G", "busy-16G", "busy-256G", "busy-1T", "busy-16T", "quiet-1G"],
            vec!["4.1-1", "4.1-2", "4.1-11", "4.2-a", "4.2-b"],
            vec!["page_fault1-linux", "page_fault1-model", "page_fault2-model", "page_fault10"],
            vec!["back-p50", "back-p99", "back-p100", "resident"],
        ] {
            let mut again = sorted.clone();
            again.reverse();
            again.sort_by_cached_key(|name| natural(name));
            assert_eq!(again, sorted);
        }
    }
}
