// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes the records as one self-contained page: tables, curves, maps of memory, and the command
//! that repeats each.
//!
//! The page holds no script and loads nothing. It follows the reader's choice of light or dark.

mod charts;
mod map;
mod section;
mod summary;
mod text;

use maud::{DOCTYPE, PreEscaped, html};

use super::store::Kept;
use super::table::groups;
pub use text::verdict_name;
use text::{prose, slug};

const STYLE: &str = include_str!("style.css");
const TITLE: &str = "Free page reporting: measurements";

/// Renders the page; `about` gives the sentence that introduces an experiment.
pub fn render(kept: &Kept, about: &dyn Fn(&str) -> Option<String>) -> String {
    let groups = groups(&kept.records);
    let mut experiments: Vec<&str> = Vec::new();
    let of_records = groups.iter().map(|group| group.experiment);
    for name in of_records.chain(kept.failures.iter().map(|failure| &*failure.experiment)) {
        if !experiments.contains(&name) {
            experiments.push(name);
        }
    }
    let section = |experiment: &str| {
        let id = slug(experiment);
        let groups: Vec<_> = groups.iter().filter(|group| group.experiment == experiment).collect();
        html! {
            section id=(id) aria-labelledby={ (id) "-h" } {
                h2 id={ (id) "-h" } { (experiment) }
                @if let Some(text) = about(experiment) { p { (prose(&text)) } }
                @for failure in kept.failures.iter().filter(|failure| failure.experiment == experiment) {
                    (summary::failure(failure))
                }
                (section::contents(&groups))
                @for group in groups { (section::group(group)) }
                p.up { a href="#summary" { "Up to the summary" } }
            }
        }
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                link rel="icon" href="data:,";
                title { (TITLE) }
                style { (PreEscaped(::charts::STYLE)) (PreEscaped(STYLE)) (PreEscaped(text::table_style())) }
            }
            body {
                a.skip href="#main" { "To the results" }
                (map::patterns())
                header { h1 { (TITLE) } }
                nav aria-label="Experiments" {
                    ul {
                        li { a href="#summary" { "summary" } }
                        @for name in &experiments { li { a href={ "#" (slug(name)) } { (name) } } }
                    }
                }
                main id="main" {
                    (summary::section(kept, &experiments))
                    @for experiment in &experiments { (section(experiment)) }
                }
            }
        }
    };
    page.into_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::charts::{CLOSED_FORM, MEASURED};
    use super::*;
    use crate::machine::Machine;
    use crate::store::{
        CaseRecord, FORMAT, Failure, Findings, MemoryMap, Place, Verdict, VerdictKind,
    };

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
    fn report_page_has_all_figures_and_is_self_contained() {
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
        assert_eq!(page.matches("Repeat: <code>").count(), 7);
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
