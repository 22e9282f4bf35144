//! What was kept as one page that needs nothing but a browser: tables, curves, maps of memory, and
//! for each the command that gets it again.
//!
//! The page holds no script and loads nothing. It follows the reader's choice of light or dark.

mod chart;
mod map;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Result, ensure};

use super::store::{CaseRecord, Series, VerdictKind};
use super::table::{Group, groups, number};
use chart::Line;

const STYLE: &str = include_str!("style.css");

/// What a chart shows beside the measured curve.
const CLOSED_FORM: &str = "closed-form";
const MEASURED: &str = "measured";

/// The page; `about` gives the sentence that an experiment is introduced with.
///
/// # Errors
/// Where there is no record.
pub fn render(records: &[CaseRecord], about: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    ensure!(!records.is_empty(), "there is nothing to report on");
    let mut page = String::new();
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>Free page reporting: measurements</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         {}\n<header><h1>Free page reporting: measurements</h1>\n{}</header>\n",
        map::patterns(),
        machines(records)
    )?;
    let groups = groups(records);
    let experiments: Vec<&str> = groups.iter().fold(Vec::new(), |mut names, group| {
        if !names.contains(&group.experiment) {
            names.push(group.experiment);
        }
        names
    });
    let link = |name: &&str| format!("<li><a href=\"#{name}\">{name}</a></li>");
    let links: String = experiments.iter().map(link).collect();
    write!(page, "<nav aria-label=\"Experiments\"><ul>{links}</ul></nav>\n<main>\n")?;
    for experiment in experiments {
        writeln!(page, "<section id=\"{experiment}\" aria-labelledby=\"{experiment}-h\">")?;
        writeln!(page, "<h2 id=\"{experiment}-h\">{experiment}</h2>")?;
        if let Some(text) = about(experiment) {
            writeln!(page, "<p>{}</p>", escape(&text))?;
        }
        for group in groups.iter().filter(|group| group.experiment == experiment) {
            section(&mut page, group)?;
        }
        writeln!(page, "</section>")?;
    }
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(page)
}

/// On what and when.
fn machines(records: &[CaseRecord]) -> String {
    let of = |record: &CaseRecord| {
        let machine = &record.machine;
        format!(
            "{}, {} CPUs, {} GiB, Linux {}; commit {}",
            machine.cpu,
            machine.cores,
            machine.memory_bytes >> 30,
            machine.kernel,
            machine.commit
        )
    };
    let dates = || records.iter().map(|record| record.machine.date.as_str());
    let (first, last) = (dates().min().unwrap_or_default(), dates().max().unwrap_or_default());
    let all: BTreeSet<String> = records.iter().map(of).collect();
    let items: String = all.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
    format!("<p>Measured from {first} to {last} on</p>\n<ul>{items}</ul>\n")
}

/// One group of cases: what they share, tables, charts, maps, and how to get them again.
fn section(page: &mut String, group: &Group<'_>) -> Result<()> {
    let title = match group.kind {
        "" => group.experiment.to_owned(),
        kind => format!("{}: {kind}", group.experiment),
    };
    let id = format!("{}-{}", group.experiment, group.kind);
    writeln!(page, "<h3>{}</h3>", escape(&title))?;
    verdicts(page, group, &title)?;
    figures(page, group, &title)?;
    let again = again(group);
    let mut pictures = String::new();
    for (nr, (name, what, lines)) in charts(group).into_iter().enumerate() {
        let title = format!("{name}: {what}");
        write!(
            pictures,
            "<figure>\n<figcaption>{}</figcaption>\n{}\n{}\n{again}</figure>\n",
            escape(&title),
            chart::svg(&format!("{id}-c{nr}"), &title, &lines),
            chart::legend(&lines)
        )?;
    }
    for (nr, (case, record)) in group.cases.iter().enumerate() {
        let Some(map) = &record.map else { continue };
        let title = format!("{case}: guest memory over time");
        write!(
            pictures,
            "<figure>\n<figcaption>{}</figcaption>\n{}\n{}\n{}</figure>\n",
            escape(&title),
            map::svg(&format!("{id}-m{nr}"), &title, map),
            map::legend(),
            command(&record.command)
        )?;
    }
    if !pictures.is_empty() {
        writeln!(page, "<div class=\"charts\">\n{pictures}</div>")?;
    }
    let notes: BTreeSet<&str> =
        group.cases.iter().flat_map(|(_, record)| &record.notes).map(String::as_str).collect();
    if !notes.is_empty() {
        let items: String = notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
        writeln!(page, "<ul>{items}</ul>")?;
    }
    parameters(page, group)
}

fn verdicts(page: &mut String, group: &Group<'_>, title: &str) -> Result<()> {
    let rows: Vec<_> =
        group.cases.iter().filter_map(|(_, r)| Some((*r, r.verdict.as_ref()?))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    write!(
        page,
        "<div class=\"scroll\" tabindex=\"0\"><table>\n<caption>{}: what came of it</caption>\n<thead><tr>\
         <th scope=\"col\">scenario</th><th scope=\"col\">verdict</th><th scope=\"col\">why</th>\
         </tr></thead>\n<tbody>\n",
        escape(title)
    )?;
    for (record, verdict) in rows {
        writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"text\">{}</td></tr>",
            escape(&record.case),
            verdict_name(verdict.kind),
            escape(&verdict.text)
        )?;
    }
    page.push_str("</tbody></table></div>\n");
    Ok(())
}

/// A verdict for a reader.
pub fn verdict_name(kind: VerdictKind) -> &'static str {
    match kind {
        VerdictKind::Survived => "survived",
        VerdictKind::AsDocumented => "as documented",
        VerdictKind::Lost => "LOST",
        VerdictKind::Shown => "shown",
        VerdictKind::NotShown => "not shown",
        VerdictKind::NotTestable => "not testable here",
    }
}

fn figures(page: &mut String, group: &Group<'_>, title: &str) -> Result<()> {
    let rows = group.rows();
    if rows.is_empty() {
        return Ok(());
    }
    write!(
        page,
        "<div class=\"scroll\" tabindex=\"0\"><table>\n<caption>{}</caption>\n<thead><tr><td></td>",
        escape(title)
    )?;
    for (case, _) in &group.cases {
        write!(page, "<th scope=\"col\">{}</th>", escape(case))?;
    }
    page.push_str(
        "<th scope=\"col\">unit</th><th scope=\"col\">what it is</th></tr></thead>\n<tbody>\n",
    );
    for (name, figure) in rows {
        write!(page, "<tr><th scope=\"row\">{}</th>", escape(name))?;
        for (_, record) in &group.cases {
            let value = record.figures.get(name).map_or("–".to_owned(), |f| number(f.value));
            write!(page, "<td>{value}</td>")?;
        }
        writeln!(
            page,
            "<td>{}</td><td class=\"text\">{}</td></tr>",
            escape(&figure.unit),
            escape(&figure.what)
        )?;
    }
    page.push_str("</tbody></table></div>\n");
    Ok(())
}

/// The charts of a group: name, what it shows, and its lines; cases with the same curve share one.
fn charts<'a>(group: &Group<'a>) -> Vec<(String, String, Vec<Line<'a>>)> {
    let mut by_name: BTreeMap<&str, Vec<(String, &Series)>> = BTreeMap::new();
    for (case, record) in &group.cases {
        for (name, series) in &record.series {
            // Beside the curve that it is to be compared with.
            let (chart, line) = match name.as_str() {
                CLOSED_FORM => (MEASURED, format!("{case}, closed form")),
                name => (name, (*case).to_owned()),
            };
            by_name.entry(chart).or_default().push((line, series));
        }
    }
    let chart = |(name, curves): (&str, Vec<(String, &'a Series)>)| {
        let mut lines: Vec<Line<'a>> = Vec::new();
        for (case, series) in curves {
            match lines.iter_mut().find(|line| line.series.points == series.points) {
                Some(same) => {
                    same.name.push_str(", ");
                    same.name.push_str(&case);
                }
                None => lines.push(Line { name: case, series }),
            }
        }
        let what = lines.first().map(|line| line.series.what.clone()).unwrap_or_default();
        (name.to_owned(), what, lines)
    };
    by_name.into_iter().map(chart).collect()
}

/// The command that gets all of the group again: the cases' own, where they differ in nothing else,
/// in one.
fn again(group: &Group<'_>) -> String {
    let split = |record: &CaseRecord| {
        let (before, rest) = record.command.split_once(" --case ")?;
        let after = rest.strip_prefix(record.case.as_str())?;
        Some((before.to_owned(), after.to_owned()))
    };
    let parts: Option<BTreeSet<_>> = group.cases.iter().map(|(_, record)| split(record)).collect();
    let Some(parts) = parts.filter(|parts| parts.len() == 1) else {
        return group.cases.iter().map(|(_, record)| command(&record.command)).collect();
    };
    let cases: String =
        group.cases.iter().map(|(_, record)| format!(" --case {}", record.case)).collect();
    let one = |(before, after): (String, String)| command(&format!("{before}{cases}{after}"));
    parts.into_iter().map(one).collect()
}

fn command(command: &str) -> String {
    format!("<p class=\"again\">Again: <code>{}</code></p>\n", escape(command))
}

fn parameters(page: &mut String, group: &Group<'_>) -> Result<()> {
    writeln!(page, "<details><summary>Commands and parameters of each case</summary>\n<dl>")?;
    for (_, record) in &group.cases {
        let set: Vec<String> =
            record.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        writeln!(
            page,
            "<dt><code>{}</code></dt><dd>{}; seed {}</dd>",
            escape(&record.command),
            escape(&set.join(", ")),
            record.seed
        )?;
    }
    writeln!(page, "</dl></details>")?;
    Ok(())
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::machine::Machine;
    use crate::lab::store::{Findings, MemoryMap, Verdict};

    fn record(case: &str, value: f64) -> CaseRecord {
        let mut findings = Findings::default();
        findings.figure("back", value, "s", "until it is back");
        let units = ("s", "MiB");
        findings.series(MEASURED, units, "memory", vec![(0.0, 1.0), (1.0, value)]);
        findings.series(CLOSED_FORM, units, "memory", vec![(0.0, 1.0), (1.0, 9.0)]);
        let Findings { figures, series, .. } = findings;
        CaseRecord {
            experiment: "test".to_owned(),
            case: case.to_owned(),
            seed: 1,
            parameters: BTreeMap::from([("rounds".to_owned(), "<3>".to_owned())]),
            command: format!("cargo xtask lab bench test --case {case} --seed 1"),
            machine: Machine { date: "2026-01-01T00:00:00Z".to_owned(), ..Machine::default() },
            figures,
            series,
            map: Some(MemoryMap {
                cell_bytes: 4096,
                times_us: vec![0],
                rows: vec!["ufirg".into()],
            }),
            verdict: Some(Verdict { kind: VerdictKind::NotShown, text: "not <here>".to_owned() }),
            notes: vec!["a & b".to_owned()],
        }
    }

    #[test]
    fn a_page_has_every_figure_with_its_command_and_needs_nothing_else() {
        let mut records = [record("d-uniform", 2.0), record("e-uniform", 3.0), record("race", 1.0)];
        for record in &mut records[..2] {
            record.verdict = None;
        }
        records[2].experiment = "race".to_owned();
        let page = render(&records, &|name| Some(format!("about {name}"))).unwrap();
        for record in &records {
            assert!(page.contains(&record.command), "{}", record.command);
        }
        let both = "test --case d-uniform --case e-uniform --seed 1";
        // One chart for both, a map for each; and those of the race.
        assert_eq!(page.matches("<figure>").count(), 5);
        assert_eq!(page.matches("Again: <code>").count(), 5);
        assert_eq!(page.matches(both).count(), 1);
        assert_eq!(page.matches("role=\"img\"").count(), 5);
        assert!(page.contains("d, closed form, e, closed form"), "{page}");
        for text in ["about test", "not &lt;here&gt;", "a &amp; b", "rounds=&lt;3&gt;", "not shown"]
        {
            assert!(page.contains(text), "{text}");
        }
        for outside in ["http:", "https:", "src=", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn of_nothing_there_is_no_page() {
        assert!(render(&[], &|_| None).is_err());
    }
}
