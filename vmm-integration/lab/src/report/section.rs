// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A group of cases side by side: verdicts, figures, charts, maps, and the commands that repeat
//! them.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::charts::charts;
use super::map;
use super::text::{again, badge, class, code, prose, slug, table, verdict_name};
use crate::store::{CaseRecord, Figure};
use crate::table::{Group, number};

type Cases<'a> = [(&'a str, &'a CaseRecord)];

fn id(group: &Group<'_>) -> String {
    slug(&format!("{}--{}", group.experiment, group.kind))
}

/// Links to the groups of an experiment, if it has several.
pub(super) fn contents(groups: &[&Group<'_>]) -> Markup {
    html! {
        @if groups.len() > 1 {
            ul.contents { @for group in groups { li { a href={ "#" (id(group)) } { (title(group)) } } } }
        }
    }
}

fn title<'a>(group: &Group<'a>) -> &'a str {
    if group.kind.is_empty() { group.experiment } else { group.kind }
}

/// One group.
pub(super) fn group(group: &Group<'_>) -> Markup {
    let id = id(group);
    html! {
        div id=(id) {
            @if !group.kind.is_empty() { h3 { (group.experiment) ": " (group.kind) } }
            (verdicts(group))
            div.side {
                (figures(group))
                (pictures(group, &id))
            }
            (notes(group))
            (parameters(group))
        }
    }
}

fn pictures(group: &Group<'_>, id: &str) -> Markup {
    let charts = charts(group);
    let maps: Vec<_> = group
        .cases
        .iter()
        .enumerate()
        .filter_map(|(nr, (case, r))| Some((nr, case, r, r.map.as_ref()?)))
        .collect();
    html! {
        @if !(charts.is_empty() && maps.is_empty()) {
            div.charts {
                @for (nr, of) in charts.iter().enumerate() {
                    figure {
                        figcaption { (of.chart.title) }
                        (of.chart.svg(&format!("{id}-c{nr}")))
                        (of.chart.legend())
                        (all_again(if of.cases.is_empty() { &group.cases } else { &of.cases }))
                    }
                }
                @for (nr, case, record, map) in maps {
                    @let title = format!("{case}: guest memory over time");
                    figure {
                        figcaption { (title) }
                        (map::svg(&format!("{id}-m{nr}"), &title, map))
                        (map::legend(map))
                        (again(&record.command))
                    }
                }
            }
        }
    }
}

fn verdicts(group: &Group<'_>) -> Markup {
    let rows: Vec<_> =
        group.cases.iter().filter_map(|(_, r)| Some((*r, r.verdict.as_ref()?))).collect();
    if rows.is_empty() {
        return html! {};
    }
    let body = html! {
        @for (record, verdict) in rows {
            tr role="row" id=(slug(&format!("{}-{}", record.experiment, record.case))) {
                th role="rowheader" scope="row" { (record.case) }
                td role="cell" { (badge(verdict_name(verdict.kind))) }
                td role="cell" class="text" { (prose(&verdict.text)) p.again { (code(&record.command)) } }
            }
        }
    };
    let heads = ["case", "verdict", "reason, and the command that repeats the case"];
    table("verdicts", &format!("{}: verdicts", title(group)), &heads, body)
}

/// The unit of a figure; one without a unit is a count or a ratio.
fn unit<'a>(name: &str, figure: &'a Figure, values: &[Option<f64>]) -> &'a str {
    let whole = values.iter().flatten().all(|value| value.fract() == 0.0);
    match figure.unit.as_str() {
        "" if whole && !name.contains("ratio") => "count",
        "" => "ratio",
        unit => unit,
    }
}

fn figures(group: &Group<'_>) -> Markup {
    let rows = group.rows();
    if rows.is_empty() {
        return html! {};
    }
    let cases: Vec<_> =
        group.cases.iter().filter(|(_, record)| !record.figures.is_empty()).copied().collect();
    let body = html! {
        @for (name, figure) in rows {
            @let values: Vec<Option<f64>> =
                cases.iter().map(|(_, record)| Some(record.figures.get(name)?.value)).collect();
            tr role="row" {
                th role="rowheader" scope="row" {
                    b { (name) } " " span.unit { (unit(name, figure, &values)) } small { (figure.what) }
                }
                @for ((case, _), value) in cases.iter().zip(&values) {
                    td role="cell" class=[value.is_none().then_some("none")] data-case=(case) {
                        (value.map_or("\u{2013}".to_owned(), number))
                    }
                }
            }
        }
    };
    let class = class(cases.len());
    let heads: Vec<&str> =
        ["figure"].into_iter().chain(cases.iter().map(|(case, _)| *case)).collect();
    html! {
        div class={ "holder h-" (class) } {
            (table(class, &format!("{}: figures", title(group)), &heads, body))
            (all_again(&cases))
        }
    }
}

/// The commands that repeat all of these cases: one command for cases that differ in nothing but
/// their names.
fn all_again(cases: &Cases<'_>) -> Markup {
    let split = |record: &CaseRecord| {
        let (before, rest) = record.command.split_once(" --case ")?;
        let after = rest.strip_prefix(record.case.as_str())?;
        Some((before.to_owned(), after.to_owned()))
    };
    let parts: Option<BTreeSet<_>> = cases.iter().map(|(_, record)| split(record)).collect();
    let names: String =
        cases.iter().map(|(_, record)| format!(" --case {}", record.case)).collect();
    html! {
        @match parts.filter(|parts| parts.len() == 1).and_then(|parts| parts.into_iter().next()) {
            Some((before, after)) => { (again(&format!("{before}{names}{after}"))) }
            None => { @for (_, record) in cases { (again(&record.command)) } }
        }
    }
}

/// The notes, once each, with the cases that they are about unless that is all.
fn notes(group: &Group<'_>) -> Markup {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for (case, record) in &group.cases {
        for note in &record.notes {
            match all.iter_mut().find(|(known, _)| known == note) {
                Some((_, cases)) => cases.push(case),
                None => all.push((note, vec![case])),
            }
        }
    }
    let items = html! {
        @for (note, cases) in &all {
            li { @if cases.len() < group.cases.len() { (cases.join(", ")) ": " } (prose(note)) }
        }
    };
    html! {
        @match all.len() {
            0 => {}
            1..=6 => { ul.notes { (items) } }
            many => { details { summary { (many) " notes" } ul { (items) } } }
        }
    }
}

fn parameters(group: &Group<'_>) -> Markup {
    html! {
        details {
            summary { "Command and parameters of each case" }
            dl {
                @for (_, record) in &group.cases {
                    dt { (code(&record.command)) }
                    dd {
                        @for (nr, (name, value)) in record.parameters.iter().enumerate() {
                            @if nr > 0 { ", " } (name) "=" (value)
                        }
                        @if !record.parameters.is_empty() { "; " }
                        "seed " (record.seed) ", " (record.machine.date)
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_unit() {
        let figure = |unit: &str| Figure { value: 0.0, unit: unit.into(), what: String::new() };
        for (name, given, values, expected) in [
            ("back", "s", [Some(1.5), None], "s"),
            ("passes", "", [Some(3.0), None], "count"),
            ("duplicate-ratio", "", [Some(0.0), Some(1.0)], "ratio"),
            ("scanned-per-granule", "", [Some(1.0), Some(1.25)], "ratio"),
        ] {
            assert_eq!(unit(name, &figure(given), &values), expected, "{name}");
        }
    }
}
