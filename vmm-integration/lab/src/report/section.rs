// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Cases that are put side by side: verdicts, tables, charts, maps, and how to get them again.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::charts::charts;
use super::{again, badge, chart, class, code, escape, map, prose, slug, verdict_name};
use crate::store::{CaseRecord, Figure};
use crate::table::{Group, number};

fn id(group: &Group<'_>) -> String {
    slug(&format!("{}--{}", group.experiment, group.kind))
}

/// Links to the groups of an experiment, if it has several.
pub(super) fn contents(groups: &[&Group<'_>]) -> String {
    if groups.len() < 2 {
        return String::new();
    }
    let link = |group: &&Group<'_>| {
        format!("<li><a href=\"#{}\">{}</a></li>", id(group), escape(title(group)))
    };
    format!("<ul class=\"contents\">{}</ul>\n", groups.iter().map(link).collect::<String>())
}

fn title<'a>(group: &Group<'a>) -> &'a str {
    if group.kind.is_empty() { group.experiment } else { group.kind }
}

/// One group.
pub(super) fn group(group: &Group<'_>) -> String {
    let id = id(group);
    let mut page = String::new();
    if group.kind.is_empty() {
        let _ = writeln!(page, "<div id=\"{id}\">");
    } else {
        let (experiment, kind) = (escape(group.experiment), escape(group.kind));
        let _ = writeln!(page, "<div id=\"{id}\"><h3>{experiment}: {kind}</h3>");
    }
    page.push_str(&verdicts(group));
    page.push_str("<div class=\"side\">\n");
    page.push_str(&figures(group));
    let pictures = pictures(group, &id);
    if !pictures.is_empty() {
        let _ = writeln!(page, "<div class=\"charts\">\n{pictures}</div>");
    }
    page.push_str("</div>\n");
    page.push_str(&notes(group));
    page.push_str(&parameters(group));
    page.push_str("</div>\n");
    page
}

fn pictures(group: &Group<'_>, id: &str) -> String {
    let mut pictures = String::new();
    for (nr, chart) in charts(group).into_iter().enumerate() {
        let again =
            if chart.cases.is_empty() { all_again(&group.cases) } else { all_again(&chart.cases) };
        let _ = write!(
            pictures,
            "<figure>\n<figcaption>{}</figcaption>\n{}\n{}\n{again}</figure>\n",
            escape(&chart.title),
            chart::svg(&format!("{id}-c{nr}"), &chart),
            chart::legend(&chart.lines)
        );
    }
    for (nr, (case, record)) in group.cases.iter().enumerate() {
        let Some(map) = &record.map else { continue };
        let title = format!("{case}: guest memory over time");
        let _ = write!(
            pictures,
            "<figure>\n<figcaption>{}</figcaption>\n{}\n{}\n{}</figure>\n",
            escape(&title),
            map::svg(&format!("{id}-m{nr}"), &title, map),
            map::legend(map),
            again(&record.command)
        );
    }
    pictures
}

fn verdicts(group: &Group<'_>) -> String {
    let rows: Vec<_> =
        group.cases.iter().filter_map(|(_, r)| Some((*r, r.verdict.as_ref()?))).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut page = format!(
        "<table role=\"table\" class=\"verdicts\">\n<caption>{}: what came of it</caption>\n\
         <thead role=\"rowgroup\"><tr role=\"row\"><th role=\"columnheader\" scope=\"col\">case</th>\
         <th role=\"columnheader\" scope=\"col\">verdict</th>\
         <th role=\"columnheader\" scope=\"col\">why, and the command that tries it again</th></tr>\
         </thead>\n<tbody role=\"rowgroup\">\n",
        escape(title(group))
    );
    for (record, verdict) in rows {
        let _ = writeln!(
            page,
            "<tr role=\"row\" id=\"{}\"><th role=\"rowheader\" scope=\"row\">{}</th>\
             <td role=\"cell\">{}</td><td role=\"cell\" class=\"text\">{}\
             <p class=\"again\">{}</p></td></tr>",
            slug(&format!("{}-{}", record.experiment, record.case)),
            escape(&record.case),
            badge(verdict_name(verdict.kind)),
            prose(&verdict.text),
            code(&record.command)
        );
    }
    page.push_str("</tbody></table>\n");
    page
}

/// The unit of a figure; without one it is how many, or one number over another.
fn unit<'a>(name: &str, figure: &'a Figure, values: &[Option<f64>]) -> &'a str {
    let whole = values.iter().flatten().all(|value| value.fract() == 0.0);
    match figure.unit.as_str() {
        "" if whole && !name.contains("ratio") => "count",
        "" => "ratio",
        unit => unit,
    }
}

fn figures(group: &Group<'_>) -> String {
    let rows = group.rows();
    if rows.is_empty() {
        return String::new();
    }
    let cases: Vec<_> =
        group.cases.iter().filter(|(_, record)| !record.figures.is_empty()).copied().collect();
    let mut page = format!(
        "<div class=\"holder h-{0}\"><table role=\"table\" class=\"{0}\">\n<caption>{1}: figures\
         </caption>\n<thead role=\"rowgroup\"><tr role=\"row\">\
         <th role=\"columnheader\" scope=\"col\">figure</th>",
        class(cases.len()),
        escape(title(group))
    );
    for (case, _) in &cases {
        let _ = write!(page, "<th role=\"columnheader\" scope=\"col\">{}</th>", escape(case));
    }
    page.push_str("</tr></thead>\n<tbody role=\"rowgroup\">\n");
    for (name, figure) in rows {
        let values: Vec<Option<f64>> =
            cases.iter().map(|(_, record)| Some(record.figures.get(name)?.value)).collect();
        let _ = write!(
            page,
            "<tr role=\"row\"><th role=\"rowheader\" scope=\"row\"><b>{}</b> \
             <span class=\"unit\">{}</span><small>{}</small></th>",
            escape(name),
            escape(unit(name, figure, &values)),
            escape(&figure.what)
        );
        for ((case, _), value) in cases.iter().zip(&values) {
            let (class, text) = match value {
                Some(value) => ("", number(*value)),
                None => (" class=\"none\"", "\u{2013}".to_owned()),
            };
            let case = escape(case);
            let _ = write!(page, "<td role=\"cell\"{class} data-case=\"{case}\">{text}</td>");
        }
        page.push_str("</tr>\n");
    }
    let _ = writeln!(page, "</tbody></table>\n{}</div>", all_again(&cases));
    page
}

/// The command that gets all of these again: the cases' own, where they differ in nothing else, in
/// one.
fn all_again(cases: &[(&str, &CaseRecord)]) -> String {
    let split = |record: &CaseRecord| {
        let (before, rest) = record.command.split_once(" --case ")?;
        let after = rest.strip_prefix(record.case.as_str())?;
        Some((before.to_owned(), after.to_owned()))
    };
    let parts: Option<BTreeSet<_>> = cases.iter().map(|(_, record)| split(record)).collect();
    let Some(parts) = parts.filter(|parts| parts.len() == 1) else {
        return cases.iter().map(|(_, record)| again(&record.command)).collect();
    };
    let names: String =
        cases.iter().map(|(_, record)| format!(" --case {}", record.case)).collect();
    let one = |(before, after): (String, String)| again(&format!("{before}{names}{after}"));
    parts.into_iter().map(one).collect()
}

/// What a reader has to know, once each; of which cases, where it is not said of all.
fn notes(group: &Group<'_>) -> String {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for (case, record) in &group.cases {
        for note in &record.notes {
            match all.iter_mut().find(|(known, _)| known == note) {
                Some((_, cases)) => cases.push(case),
                None => all.push((note, vec![case])),
            }
        }
    }
    let item = |(note, cases): &(&str, Vec<&str>)| {
        let of = if cases.len() == group.cases.len() {
            String::new()
        } else {
            format!("{}: ", escape(&cases.join(", ")))
        };
        format!("<li>{of}{}</li>\n", prose(note))
    };
    let items: String = all.iter().map(item).collect();
    match all.len() {
        0 => items,
        1..=6 => format!("<ul class=\"notes\">\n{items}</ul>\n"),
        many => {
            format!("<details><summary>{many} notes</summary><ul>\n{items}</ul></details>\n")
        }
    }
}

fn parameters(group: &Group<'_>) -> String {
    let set = |record: &CaseRecord| {
        let set: Vec<String> =
            record.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let set = if set.is_empty() { String::new() } else { format!("{}; ", set.join(", ")) };
        format!("{set}seed {}, {}", record.seed, record.machine.date)
    };
    let mut page =
        "<details><summary>Command and parameters of each case</summary>\n<dl>\n".to_owned();
    for (_, record) in &group.cases {
        let (command, set) = (code(&record.command), escape(&set(record)));
        let _ = writeln!(page, "<dt>{command}</dt><dd>{set}</dd>");
    }
    page.push_str("</dl></details>\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_figure_is_without_a_unit() {
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
