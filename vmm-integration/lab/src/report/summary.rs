// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the page begins with: what was run, what came of it, what went wrong, and on what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::{again, badge, class, escape, slug, verdict_name};
use crate::store::{CaseRecord, Failure, Kept, VerdictKind};

/// Verdicts in the order of their columns.
const KINDS: [VerdictKind; 6] = [
    VerdictKind::Lost,
    VerdictKind::Survived,
    VerdictKind::AsDocumented,
    VerdictKind::Shown,
    VerdictKind::NotShown,
    VerdictKind::NotTestable,
];
/// The column of cases that failed.
const FAILED: &str = "failed";

/// The section.
pub(super) fn section(kept: &Kept, experiments: &[&str]) -> String {
    let Kept { records, failures, unreadable } = kept;
    let mut page = format!(
        "<section id=\"summary\" aria-labelledby=\"summary-h\">\n<h2 id=\"summary-h\">Summary</h2>\n\
         <p class=\"lead\">{} of {}.{}</p>\n",
        plural(records.len(), "case"),
        plural(experiments.len(), "experiment"),
        verdicts(kept)
    );
    for failure in failures {
        page.push_str(&self::failure(failure));
    }
    for record in records.iter().filter(|record| kind(record) == Some(VerdictKind::Lost)) {
        let text = record.verdict.as_ref().map_or("", |verdict| &verdict.text);
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "<div class=\"bad\"><p>{} <a href=\"#{}\">{} {}</a>: {}</p>\n{}</div>\n",
            badge(verdict_name(VerdictKind::Lost)),
            slug(&format!("{}-{}", record.experiment, record.case)),
            escape(&record.experiment),
            escape(&record.case),
            escape(text),
            again(&record.command)
        );
    }
    if !unreadable.is_empty() {
        let items: String = unreadable
            .iter()
            .map(|why| format!("<li>{}</li>", escape(&format!("{why:#}"))))
            .collect();
        let _ = writeln!(page, "<div class=\"bad\"><p>Not on this page:</p><ul>{items}</ul></div>");
    }
    page.push_str(&table(kept, experiments));
    page.push_str(&machines(records));
    page.push_str(
        "<h3>How to read it</h3>\n<ul>\n\
         <li>Each table, chart, map and verdict says with which command it is had again, and the notes \
         below it what the same seed repeats.</li>\n\
         <li>The unit stands behind a figure&#39;s name. <i>count</i> is how many, <i>ratio</i> one \
         number over another. \u{2013} is: this case has no such figure.</li>\n\
         <li>K, M, G and T behind a size are KiB, MiB, GiB and TiB; at the axis of a chart k, M and G \
         are thousands, millions and billions of its unit.</li>\n</ul>\n</section>\n",
    );
    page
}

/// A case that failed.
pub(super) fn failure(failure: &Failure) -> String {
    format!(
        "<div class=\"bad\"><p>{} <a href=\"#{}\">{}</a> {}, {}: {}</p>\n{}</div>\n",
        badge(FAILED),
        slug(&failure.experiment),
        escape(&failure.experiment),
        escape(&failure.case),
        escape(&failure.machine.date),
        escape(&failure.error),
        again(&failure.command)
    )
}

fn kind(record: &CaseRecord) -> Option<VerdictKind> {
    record.verdict.as_ref().map(|verdict| verdict.kind)
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How many of which verdict, in a sentence.
fn verdicts(kept: &Kept) -> String {
    let of = |wanted: VerdictKind| kept.records.iter().filter(|r| kind(r) == Some(wanted)).count();
    let counts = KINDS.into_iter().map(|kind| (verdict_name(kind), of(kind)));
    let all = [(FAILED, kept.failures.len())].into_iter().chain(counts);
    let parts: Vec<String> = all
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    if parts.is_empty() { " None failed.".to_owned() } else { format!(" {}.", parts.join(", ")) }
}

/// A row for each experiment: its cases, and what came of them.
fn table(kept: &Kept, experiments: &[&str]) -> String {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for record in &kept.records {
        let column = kind(record).map_or("measured", verdict_name);
        *counts.entry((&record.experiment, column)).or_default() += 1;
    }
    for failure in &kept.failures {
        *counts.entry((&failure.experiment, FAILED)).or_default() += 1;
    }
    let columns: Vec<&str> = ["measured", FAILED]
        .into_iter()
        .chain(KINDS.map(verdict_name))
        .filter(|column| counts.keys().any(|(_, counted)| counted == column))
        .collect();
    let mut page = format!(
        "<div class=\"holder\"><table role=\"table\" class=\"counts {}\">\n<caption>Cases by what \
         came of them</caption>\n<thead role=\"rowgroup\"><tr role=\"row\"><th role=\"columnheader\" \
         scope=\"col\">experiment</th>",
        class(columns.len())
    );
    for column in &columns {
        let _ = write!(page, "<th role=\"columnheader\" scope=\"col\">{column}</th>");
    }
    page.push_str("</tr></thead>\n<tbody role=\"rowgroup\">\n");
    for experiment in experiments {
        let _ = write!(
            page,
            "<tr role=\"row\"><th role=\"rowheader\" scope=\"row\"><a href=\"#{}\">{}</a></th>",
            slug(experiment),
            escape(experiment)
        );
        for column in &columns {
            let count = counts.get(&(*experiment, *column)).copied().unwrap_or(0);
            let class = if count == 0 { " class=\"none\"" } else { "" };
            let _ = write!(page, "<td role=\"cell\"{class} data-case=\"{column}\">{count}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
    page
}

/// On what and when.
fn machines(records: &[CaseRecord]) -> String {
    let mut all: BTreeMap<String, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for CaseRecord { machine, .. } in records {
        let text = format!(
            "{}, {}, {} GiB of memory, Linux {}",
            machine.cpu,
            plural(machine.cores, "CPU"),
            machine.memory_bytes >> 30,
            machine.kernel,
        );
        let commits = all.entry(text).or_default();
        commits.entry(&machine.commit).or_default().insert(&machine.date);
    }
    if all.is_empty() {
        return String::new();
    }
    let mut page = "<h3>On what and when</h3>\n".to_owned();
    for (machine, commits) in all {
        let item = |(commit, dates): (&str, BTreeSet<&str>)| {
            let to_minute = |date: &str| date.get(..16).unwrap_or(date).replace('T', " ");
            let [first, last] =
                [dates.first(), dates.last()].map(|date| to_minute(date.unwrap_or(&"")));
            format!(
                "<li>commit {}, {} to {} UTC</li>\n",
                escape(if commit.is_empty() { "unknown" } else { commit }),
                escape(&first),
                escape(&last)
            )
        };
        let items: String = commits.into_iter().map(item).collect();
        let _ = write!(page, "<p>{}</p>\n<ul>\n{items}</ul>\n", escape(&machine));
    }
    page
}
