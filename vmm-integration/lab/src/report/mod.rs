// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was kept as one page that needs nothing but a browser: tables, curves, maps of memory, and
//! for each the command that gets it again.
//!
//! The page holds no script and loads nothing. It follows the reader's choice of light or dark.

mod chart;
mod charts;
mod map;
mod section;
mod summary;

use super::size::Size;
use super::store::{Kept, VerdictKind};
use super::table::groups;

const STYLE: &str = include_str!("style.css");
/// The style of a table, of the class `stack`, that has no room for its columns: a card a row, each
/// value beside the name of its case.
const STACK: &str = include_str!("stack.css");
/// Classes of tables: how many columns beside the first they have at most, and how wide these are
/// altogether, in rem. A table that is less wide is stacked; one with more columns always is.
const WIDTHS: [(usize, &str, u32); 4] =
    [(2, "n2", 30), (4, "n4", 42), (7, "n7", 56), (11, "n11", 76)];

/// The page; `about` gives the sentence that an experiment is introduced with.
pub fn render(kept: &Kept, about: &dyn Fn(&str) -> Option<String>) -> String {
    let groups = groups(&kept.records);
    let mut experiments: Vec<&str> = Vec::new();
    let of_records = groups.iter().map(|group| group.experiment);
    for name in of_records.chain(kept.failures.iter().map(|failure| &*failure.experiment)) {
        if !experiments.contains(&name) {
            experiments.push(name);
        }
    }
    let link = |name: &&str| format!("<li><a href=\"#{}\">{}</a></li>", slug(name), escape(name));
    let links: String = experiments.iter().map(link).collect();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>Free page reporting: measurements</title>\n<style>\n{}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">To the results</a>\n{}\n\
         <header><h1>Free page reporting: measurements</h1></header>\n\
         <nav aria-label=\"Experiments\"><ul><li><a href=\"#summary\">summary</a></li>{links}</ul></nav>\n\
         <main id=\"main\">\n",
        style(),
        map::patterns()
    );
    page.push_str(&summary::section(kept, &experiments));
    for experiment in experiments {
        let id = slug(experiment);
        page.push_str(&format!(
            "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{}</h2>\n",
            escape(experiment)
        ));
        if let Some(text) = about(experiment) {
            page.push_str(&format!("<p>{}</p>\n", prose(&text)));
        }
        for failure in kept.failures.iter().filter(|failure| failure.experiment == experiment) {
            page.push_str(&summary::failure(failure));
        }
        let of_it: Vec<_> = groups.iter().filter(|group| group.experiment == experiment).collect();
        page.push_str(&section::contents(&of_it));
        for group in of_it {
            page.push_str(&section::group(group));
        }
        page.push_str(
            "<p class=\"up\"><a href=\"#summary\">Up to the summary</a></p>\n</section>\n",
        );
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
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

/// A verdict, or a failure, as a word that catches the eye as much as it should.
fn badge(name: &str) -> String {
    format!("<span class=\"badge b-{}\">{}</span>", slug(&name.to_lowercase()), escape(name))
}

/// A command that gets something again; a long one is folded away.
fn again(command: &str) -> String {
    let code = code(command);
    if command.len() <= 160 {
        return format!("<p class=\"again\">Again: {code}</p>\n");
    }
    format!("<details class=\"again\"><summary>Again, in one command</summary>{code}</details>\n")
}

/// A command, which is broken between its words only.
fn code(command: &str) -> String {
    let word = |word: &str| format!("<span>{}</span>", escape(word));
    let words: Vec<String> = command.split(' ').map(word).collect();
    format!("<code>{}</code>", words.join(" "))
}

/// A text, with what stands between backticks as code.
fn prose(text: &str) -> String {
    let text = escape(text);
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return text;
    }
    let part = |(nr, part): (usize, &&str)| match nr % 2 {
        0 => (*part).to_owned(),
        _ => format!("<code>{part}</code>"),
    };
    parts.iter().enumerate().map(part).collect()
}

/// A size with its unit.
fn size(bytes: u64) -> String {
    let text = Size(bytes).to_string();
    match text.strip_suffix(|c: char| c.is_ascii_alphabetic()) {
        Some(digits) => format!("{digits} {}iB", &text[digits.len()..]),
        None => format!("{text} B"),
    }
}

/// The page's style.
fn style() -> String {
    let narrow = |(_, class, rem): (usize, &str, u32)| {
        let rules = STACK.replace(".stack", &format!(".{class}"));
        format!("@container (max-width: {rem}rem) {{\n{rules}}}\n")
    };
    STYLE.to_owned() + &WIDTHS.into_iter().map(narrow).collect::<String>() + STACK
}

/// The class of a table with so many columns beside the first.
fn class(columns: usize) -> &'static str {
    let found = WIDTHS.into_iter().find(|(most, ..)| columns <= *most);
    found.map_or("stack", |(_, class, _)| class)
}

/// A name as part of an id.
fn slug(name: &str) -> String {
    let part = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
    name.chars().map(part).collect()
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::charts::{CLOSED_FORM, MEASURED};
    use super::*;
    use crate::machine::Machine;
    use crate::store::{CaseRecord, FORMAT, Failure, Findings, MemoryMap, Place, Verdict};

    fn record(case: &str, value: f64) -> CaseRecord {
        let mut findings = Findings::default();
        findings.figure("back", value, "s", "until it is back");
        findings.figure("passes", 3.0, "", "of the reporter");
        let units = ("s", "MiB");
        findings.series(MEASURED, units, "memory", vec![(0.0, 1.0), (1.0, value)]);
        findings.series(CLOSED_FORM, units, "memory", vec![(0.0, 1.0), (1.0, 9.0)]);
        let Findings { figures, series, .. } = findings;
        CaseRecord {
            format: FORMAT,
            experiment: "test".to_owned(),
            case: case.to_owned(),
            place: Place { table: "uniform".to_owned(), column: case.replace("-uniform", "") },
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
        let mut records =
            vec![record("d-uniform", 2.0), record("e-uniform", 3.0), record("race", 1.0)];
        for record in &mut records[..2] {
            record.verdict = None;
        }
        records[2].experiment = "race".to_owned();
        records[2].place.table = String::new();
        let kept = Kept { records, ..Kept::default() };
        let page = render(&kept, &|name| Some(format!("about `{name}`")));
        let page = page.replace("<span>", "").replace("</span>", "");
        for record in &kept.records {
            assert!(page.contains(&record.command), "{}", record.command);
        }
        let both = "test --case d-uniform --case e-uniform --seed 1";
        // One chart for both, a map for each; and those of the race. A table for each as well.
        assert_eq!(page.matches("<figure>").count(), 5);
        assert_eq!(page.matches("Again: <code>").count(), 7);
        assert_eq!(page.matches(both).count(), 2);
        assert_eq!(page.matches("role=\"img\"").count(), 5);
        assert!(page.contains("closed form of d, e<"), "{page}");
        for text in [
            "about <code>test</code>",
            "not &lt;here&gt;",
            "a &amp; b",
            "rounds=&lt;3&gt;",
            "not shown",
        ] {
            assert!(page.contains(text), "{text}");
        }
        for outside in ["http:", "https:", "src=", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn what_failed_and_what_cannot_be_read_is_said_first() {
        let failure = Failure {
            experiment: "race".to_owned(),
            case: "bad".to_owned(),
            command: "cargo xtask lab race race --case bad --seed 1".to_owned(),
            machine: Machine::default(),
            error: "memory <lost>".to_owned(),
        };
        let mut lost = record("lost", 1.0);
        lost.verdict = Some(Verdict { kind: VerdictKind::Lost, text: "4096 bytes".to_owned() });
        let unreadable = vec![anyhow::anyhow!("x.json is not a record of this lab")];
        let kept = Kept { records: vec![lost], failures: vec![failure.clone()], unreadable };
        let page = render(&kept, &|_| None);
        let (first, rest) = page.split_once("<section id=\"test\"").unwrap();
        for text in ["1 failed", "1 LOST", "memory &lt;lost&gt;", "x.json is no", "#test-lost"] {
            assert!(first.contains(text), "{text}: {first}");
        }
        assert!(first.replace("<span>", "").replace("</span>", "").contains(&failure.command));
        assert!(
            rest.contains("id=\"test-lost\"") && rest.contains("<section id=\"race\""),
            "{rest}"
        );
    }
}
