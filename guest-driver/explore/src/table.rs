// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pages of `docs/research/exploration/`, from a search of every configuration.

use core::fmt::Write;
use core::num::NonZero;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use crate::search::{Found, search};
use crate::strategies::Strategy;
use crate::{Case, Entry, Kind};

/// [`Effort::margin`] of the page.
pub const MARGIN: u64 = 10;

/// How far searches go.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How schedules are chosen, but for small configurations.
    pub strategy: Strategy,
    /// The most schedules in which something wrong must show.
    pub most: u64,
    /// The fewest that each good configuration stands.
    pub least: u64,
    /// How many times as many as the slowest known-bad one took each of them stands at least.
    pub margin: u64,
    /// Preemptions up to which every schedule of a small configuration is taken.
    pub preemptions: usize,
    /// The most of those schedules.
    pub most_exhaustive: u64,
    /// Configurations that are searched side by side. Results do not depend on it.
    pub jobs: NonZero<usize>,
}

/// A job for each CPU that this process may use.
pub fn jobs() -> NonZero<usize> {
    thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

/// What a search of one configuration has found.
#[derive(Clone, Debug)]
pub struct Row {
    /// The configuration.
    pub case: Case,
    /// What was found.
    pub found: Found,
}

impl Row {
    /// Searches `case`.
    pub fn search(case: Case, strategy: Strategy, numbers: core::ops::Range<u64>) -> Self {
        let found = search(&case, strategy, numbers);
        Self { case, found }
    }

    /// Whether that is what had to be found.
    pub fn as_expected(&self) -> bool {
        let violation = self.found.violation.as_ref().map(|(_, violation)| violation.invariant);
        match self.case.kind {
            // A schedule that was cut off has shown nothing.
            Kind::Good => violation.is_none() && self.found.cut_off == 0,
            Kind::KnownBad | Kind::Candidate => {
                violation.is_some_and(|violation| self.case.breaks.contains(&violation))
            }
        }
    }

    /// One line of text.
    pub fn line(&self) -> String {
        let name = &self.case.name;
        let schedules = self.found.schedules;
        match &self.found.violation {
            Some((seed, violation)) => {
                format!("{name}: after {schedules} schedules (seed {seed}): {violation}")
            }
            None => match self.found.cut_off {
                0 => format!("{name}: nothing in {schedules} schedules"),
                cut => format!("{name}: nothing in {schedules} schedules, {cut} of them cut off"),
            },
        }
    }

    /// The same for programs, as a JSON object; `cargo explore --help` documents its members.
    pub fn json(&self) -> serde_json::Value {
        let Case { model, name, kind, .. } = &self.case;
        let Found { schedules, cut_off, complete, violation } = &self.found;
        serde_json::json!({
            "model": model,
            "configuration": name,
            "kind": kind.name(),
            "schedules": schedules,
            "cut_off": cut_off,
            "complete": complete,
            "as_expected": self.as_expected(),
            "seed": violation.as_ref().map(|(seed, _)| seed),
            "invariant": violation.as_ref().map(|(_, violation)| violation.invariant),
            "what": violation.as_ref().map(|(_, violation)| &violation.what),
        })
    }

    /// The command that repeats what was found with the default strategy; empty for nothing.
    pub fn replay(&self) -> String {
        let Case { model, name, .. } = &self.case;
        self.found.violation.as_ref().map_or_else(String::new, |(seed, _)| {
            format!("cargo explore --model {model} --configuration {name} --seed {seed}")
        })
    }

    fn verdict(&self) -> String {
        self.found.violation.as_ref().map_or_else(
            || "nothing".to_owned(),
            |(_, violation)| format!("`{}`: {}", violation.invariant, violation.broken),
        )
    }
}

/// What searches of a whole model have found.
#[derive(Clone, Debug)]
pub struct Results {
    /// The model.
    pub model: &'static Entry,
    /// What is known to be wrong, and candidates.
    pub wrong: Vec<Row>,
    /// What is meant to work.
    pub good: Vec<Row>,
    /// Small configurations, every schedule.
    pub small: Vec<Row>,
    /// Most preemptions of those schedules.
    pub preemptions: usize,
}

impl Results {
    /// Schedules until the last of what is known to be wrong was found.
    pub fn slowest(&self) -> u64 {
        slowest(&self.wrong)
    }

    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.wrong.iter().chain(&self.good).chain(&self.small)
    }
}

fn slowest(wrong: &[Row]) -> u64 {
    let bad = |row: &&Row| row.case.kind == Kind::KnownBad;
    wrong.iter().filter(bad).map(|row| row.found.schedules).max().unwrap_or(0)
}

/// Searches every configuration of a model; `each` sees a row as soon as it and those before it are done.
pub fn search_all(model: &'static Entry, effort: Effort, mut each: impl FnMut(&Row)) -> Results {
    let mut run = |cases: Vec<Case>, strategy, schedules: u64| {
        let search = |case| Row::search(case, strategy, 0..schedules);
        side_by_side(effort.jobs, cases, &search, &mut each)
    };
    let (small, drawn): (Vec<_>, Vec<_>) = (model.cases)().into_iter().partition(|c| c.small);
    let (good, wrong): (Vec<_>, Vec<_>) = drawn.into_iter().partition(|c| c.kind == Kind::Good);
    let wrong = run(wrong, effort.strategy, effort.most);
    let enough = (effort.margin * slowest(&wrong)).max(effort.least);
    let good = run(good, effort.strategy, enough);
    let every = Strategy::BoundedPreemptions(effort.preemptions);
    let small = run(small, every, effort.most_exhaustive);
    Results { model, wrong, good, small, preemptions: effort.preemptions }
}

/// Searches `cases`, `jobs` of them at a time. Rows are in the order of their cases, for `each` too.
fn side_by_side(
    jobs: NonZero<usize>,
    cases: Vec<Case>,
    search: &(impl Fn(Case) -> Row + Sync),
    each: &mut impl FnMut(&Row),
) -> Vec<Row> {
    let queue = Mutex::new(cases.into_iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.get() {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some((at, case)) = next() {
                    // The receiver waits until the last sender is gone.
                    let _ = sender.send((at, search(case)));
                }
            });
        }
        drop(sender);
        let (mut early, mut rows) = (BTreeMap::new(), Vec::new());
        for (at, row) in receiver {
            early.insert(at, row);
            while let Some(row) = early.remove(&rows.len()) {
                each(&row);
                rows.push(row);
            }
        }
        rows
    })
}

/// The page about a model, after a search that `took` so long.
pub fn markdown(results: &Results, took: Duration) -> String {
    let Entry { name, about, notes, .. } = results.model;
    let mut page = format!(
        "# Exploration of `{name}`\n\nThe model: {about}.\n\nGenerated by `cargo explore --model {name} \
         --table docs/research/exploration`; do not edit. [How to read it](../exploration.md).\n"
    );
    paragraphs(&mut page, notes.intro);
    wrong(&mut page, "Known to be wrong", "", results, Kind::KnownBad);
    good(&mut page, results);
    small(&mut page, results);
    wrong(&mut page, "Candidates", notes.candidates, results, Kind::Candidate);
    let runs: u64 = results.rows().map(|row| row.found.schedules).sum();
    let _ = write!(page, "\n{runs} schedules in {} seconds.\n", took.as_secs());
    page
}

fn paragraphs(page: &mut String, text: &str) {
    if !text.is_empty() {
        let _ = write!(page, "\n{text}");
    }
}

fn wrong(page: &mut String, title: &str, notes: &str, results: &Results, kind: Kind) {
    let mut rows = results.wrong.iter().filter(|row| row.case.kind == kind).peekable();
    if rows.peek().is_none() {
        return;
    }
    let _ = write!(page, "\n## {title}\n");
    paragraphs(page, notes);
    page.push_str("\n| configuration | what it is | scenario | found | after | again |\n");
    page.push_str("|---|---|---|---|---:|---|\n");
    for row in rows {
        let Case { name, about, scenario, .. } = &row.case;
        let (found, after, again) = (row.verdict(), row.found.schedules, row.replay());
        let _ = writeln!(page, "| {name} | {about} | {scenario} | {found} | {after} | `{again}` |");
    }
}

fn good(page: &mut String, results: &Results) {
    let _ = write!(
        page,
        "\n## Meant to work\n\nThe slowest of the above took {} schedules. These stand at least \
         {MARGIN} times as many.\n\n| configuration | what it is | scenario | schedules | found |\n\
         |---|---|---|---:|---|\n",
        results.slowest()
    );
    for row in &results.good {
        let Case { name, about, scenario, .. } = &row.case;
        let (found, schedules) = (row.verdict(), row.found.schedules);
        let _ = writeln!(page, "| {name} | {about} | {scenario} | {schedules} | {found} |");
    }
    paragraphs(page, results.model.notes.good);
}

fn small(page: &mut String, results: &Results) {
    if results.small.is_empty() {
        return;
    }
    let _ = write!(
        page,
        "\n## Every schedule of the smallest\n\n{}Every schedule with at most {} preemptions.\n\n\
         | configuration | what it is | schedules | all of them | found |\n|---|---|---:|---|---|\n",
        results.model.notes.small, results.preemptions
    );
    for row in &results.small {
        let Case { name, about, .. } = &row.case;
        let (found, schedules) = (row.verdict(), row.found.schedules);
        let all = match (row.found.complete, row.found.violation.is_some()) {
            (true, _) => "yes",
            (false, true) => "up to the first that is wrong",
            (false, false) => "no",
        };
        let _ = writeln!(page, "| {name} | {about} | {schedules} | {all} | {found} |");
    }
}
