// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `docs/research/exploration.md`, from a search of every configuration.

use core::fmt::Write;
use core::time::Duration;

use crate::scenarios::reporting::catalogue;
use crate::search::{self, Found};
use crate::{Configuration, Expect};

/// How many times as many schedules the good ones stand as the slowest of the wrong ones took.
pub const MARGIN: u64 = 10;

/// How far searches go.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The first seed.
    pub seed: u64,
    /// The most schedules until something wrong has to show.
    pub most: u64,
    /// The fewest that each good configuration stands.
    pub least: u64,
    /// Preemptions up to which every schedule of the smallest scenario is taken.
    pub preemptions: usize,
    /// The most of those schedules.
    pub most_exhaustive: u64,
}

/// What came of a configuration.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub configuration: Configuration,
    /// What was found.
    pub found: Found,
}

impl Row {
    /// Whether that is what had to be found.
    pub fn as_expected(&self) -> bool {
        let violation = self.found.violation.as_ref().map(|(_, violation)| violation.invariant);
        match self.configuration.expect {
            // A schedule that was cut off has shown nothing.
            Expect::Good => violation.is_none() && self.found.cut_off == 0,
            Expect::Bad(of) | Expect::Candidate(of) => violation.is_some_and(|v| of.contains(&v)),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let name = &self.configuration.name;
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
}

/// Everything that was searched.
#[derive(Clone, Debug)]
pub struct Results {
    /// What is known to be wrong, and what the model shows of mainline.
    pub wrong: Vec<Row>,
    /// What is meant to work.
    pub good: Vec<Row>,
    /// The smallest scenario, every schedule.
    pub exhaustive: Vec<Row>,
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
        self.wrong.iter().chain(&self.good).chain(&self.exhaustive)
    }
}

fn slowest(wrong: &[Row]) -> u64 {
    let bad = |row: &&Row| matches!(row.configuration.expect, Expect::Bad(_));
    wrong.iter().filter(bad).map(|row| row.found.schedules).max().unwrap_or(0)
}

/// Searches every configuration; `tell` hears of each as it is done.
pub fn search_all(effort: Effort, mut tell: impl FnMut(&Row)) -> Results {
    let mut run = |configuration: Configuration, schedules: u64| {
        let seeds = effort.seed..effort.seed + schedules;
        let found = search::random(&configuration, seeds, None);
        let row = Row { configuration, found };
        tell(&row);
        row
    };
    let wrong = catalogue::bad().into_iter().chain(catalogue::candidates());
    let wrong: Vec<Row> = wrong.map(|configuration| run(configuration, effort.most)).collect();
    let enough = (MARGIN * slowest(&wrong)).max(effort.least);
    let good = catalogue::good().into_iter().map(|c| run(c, enough)).collect();
    let exhaustive = catalogue::smallest()
        .into_iter()
        .map(|configuration| {
            let found =
                search::exhaustive(&configuration, effort.preemptions, effort.most_exhaustive);
            let row = Row { configuration, found };
            tell(&row);
            row
        })
        .collect();
    Results { wrong, good, exhaustive, preemptions: effort.preemptions }
}

/// The command that repeats what was found.
fn replay(row: &Row) -> String {
    let name = &row.configuration.name;
    row.found.violation.as_ref().map_or_else(String::new, |(seed, _)| {
        format!("`cargo explore --scenario {name} --seed {seed}`")
    })
}

fn verdict(row: &Row) -> String {
    match &row.found.violation {
        Some((_, violation)) => {
            format!("`{}`: {}", violation.invariant, violation.invariant.broken())
        }
        None => "nothing".to_owned(),
    }
}

/// The page.
pub fn markdown(results: &Results, took: Duration) -> String {
    let mut page = String::from(HEAD);
    let wrong = |page: &mut String, candidates: bool| {
        page.push_str("| configuration | what it is | scenario | found | after | again |\n");
        page.push_str("|---|---|---|---|---:|---|\n");
        for row in &results.wrong {
            if matches!(row.configuration.expect, Expect::Candidate(_)) == candidates {
                let Configuration { name, about, scenario, .. } = &row.configuration;
                let (found, after, again) = (verdict(row), row.found.schedules, replay(row));
                let _ = writeln!(
                    page,
                    "| {name} | {about} | {} | {found} | {after} | {again} |",
                    scenario.name
                );
            }
        }
    };
    page.push_str("\n## Known to be wrong\n\n");
    wrong(&mut page, false);
    let slowest = results.slowest();
    let _ = write!(
        page,
        "\n## Meant to work\n\nThe slowest of the above took {slowest} schedules. These stand at \
         least {MARGIN} times as many.\n\n"
    );
    page.push_str("| configuration | what it is | scenario | schedules | found |\n");
    page.push_str("|---|---|---|---:|---|\n");
    for row in &results.good {
        let Configuration { name, about, scenario, .. } = &row.configuration;
        let (found, schedules) = (verdict(row), row.found.schedules);
        let _ = writeln!(page, "| {name} | {about} | {} | {schedules} | {found} |", scenario.name);
    }
    page.push_str(PULL);
    let _ = write!(
        page,
        "\n## Every schedule of the smallest\n\nOne CPU that allocates and frees one block, and one \
         pass: every schedule with at most {} preemptions.\n\n",
        results.preemptions
    );
    page.push_str("| configuration | what it is | schedules | all of them | found |\n");
    page.push_str("|---|---|---:|---|---|\n");
    for row in &results.exhaustive {
        let Configuration { name, about, .. } = &row.configuration;
        let (found, schedules) = (verdict(row), row.found.schedules);
        let all = match (row.found.complete, row.found.violation.is_some()) {
            (true, _) => "yes",
            (false, true) => "up to the first that is wrong",
            (false, false) => "no",
        };
        let _ = writeln!(page, "| {name} | {about} | {schedules} | {all} | {found} |");
    }
    page.push_str(CANDIDATES);
    wrong(&mut page, true);
    let runs: u64 = results.rows().map(|row| row.found.schedules).sum();
    let _ = write!(page, "\n{runs} schedules in {} seconds.\n", took.as_secs());
    page
}

const HEAD: &str = "\
# What exploration finds in the guest model

Generated by `cargo explore --table docs/research/exploration.md`; not to be edited. `cargo explore --help` \
tells the rest.

A configuration is a scenario (a few CPUs, the reporter, the host, and whoever else isolates, \
offlines or adds memory, over a few sections of eight pages) with one way to report. A schedule is \
one order of all the steps in it, drawn from a seed: uniformly, with a bias to stay, or by priorities \
that change at a few steps. The same seed repeats it. The invariants are listed in \
[model.md](../design/model.md).

All of this is about the model. It says nothing of Linux until a real guest shows it.
";

const PULL: &str = "
`reported-flag` promises less than the others: that a report comes after the next free of a large enough block. \
Here it gets one before it is looked for lost reports. In the scenarios `isolators` and `cma`, *pull* \
puts back what it held pageblock by pageblock, which no kernel does; see `pull-isolated-half` below. \
`migratetype-kept` is asked of *isolate*; of *pull*, which makes \
them movable (`pull-makes-movable`), only that those of a reserve do.
";

const CANDIDATES: &str = "
## Candidates

What the model shows of mainline's rules as it understands them, and of what the scheme would do by \
the rules of kernels whose isolation forgets what a pageblock was. Nobody has reported these. What real \
Linux did with them is in [findings.md](findings.md).

";
