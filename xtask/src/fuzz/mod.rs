// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fuzz`: the targets of `fuzz/`, built with the stable compiler and run by libFuzzer.

mod build;
mod hunt;
mod keep;
mod run;
mod said;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;

use crate::cargo::root;
use build::{Programs, Sanitizer};
use run::{Crash, Goal, Report};

pub(crate) use hunt::{Fall, hunt};
#[cfg(test)]
pub(crate) use keep::{MOST_BYTES, MOST_INPUTS};

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub(crate) struct Options {
    /// The targets; all of them by default.
    #[arg(value_name = "TARGET", conflicts_with = "list")]
    targets: Vec<String>,
    /// Prints the targets.
    #[arg(long)]
    list: bool,
    /// How long each target runs. 0 only replays its corpus.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Ends a target after this many executions, if it has not ended before.
    #[arg(long)]
    runs: Option<u64>,
    /// Runs one input of one target, and prints what it does.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "json", "keep"])]
    input: Option<PathBuf>,
    /// Replaces the corpus in fuzz/corpus by a small one that reaches most of what was reached.
    #[arg(long)]
    keep: bool,
    /// Checks each access to memory. Three times as slow; asks the compiler for what is not stable.
    #[arg(long, value_enum, default_value_t = Sanitizer::None)]
    sanitizer: Sanitizer,
    /// Prints a line of JSON for each target, and one for all of them.
    #[arg(long)]
    json: bool,
}

/// Runs the targets, as many at a time as there are processors.
///
/// # Errors
/// If one does not build or cannot be run, or an input fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let all = targets()?;
    if options.list {
        all.iter().for_each(|target| println!("{target}"));
        return Ok(());
    }
    for target in &options.targets {
        ensure!(all.contains(target), "no target {target:?}: expected one of {}", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { all } else { options.targets.clone() };
    let programs = Programs::build(options.sanitizer, &chosen)?;
    if let Some(input) = &options.input {
        let [target] = chosen.as_slice() else { bail!("--input needs one TARGET") };
        return run::one(&programs, target, input);
    }
    let goal = Goal { seconds: options.seconds, runs: options.runs, seed: None };
    let reports = run_all(&programs, chosen, goal)?;
    if options.json {
        for report in &reports {
            println!("{}", serde_json::to_string(report)?);
        }
        println!("{}", serde_json::json!({ "target": IN_ALL, "executions": in_all(&reports) }));
    } else {
        println!("{}", table(&reports));
    }
    if options.keep {
        reports.iter().try_for_each(|report| keep::keep(&programs, &report.target))?;
    }
    verdict(&reports)
}

/// Replays each corpus and goes on from it for some seconds, a minute in a full run.
///
/// # Errors
/// As [`run()`].
pub(crate) fn for_tests(full: bool) -> Result<()> {
    let targets = targets()?;
    let programs = Programs::build(Sanitizer::None, &targets)?;
    // The same inputs each time: what others find in a short run is no fault of a change.
    let (seconds, seed) = if full { (60, None) } else { (3, Some(1)) };
    let goal = Goal { seconds, runs: None, seed };
    let reports = run_all(&programs, targets, goal)?;
    println!("{}", table(&reports));
    verdict(&reports)
}

/// The names of the targets, sorted: a file each.
pub(crate) fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn run_all(programs: &Programs, targets: Vec<String>, goal: Goal) -> Result<Vec<Report>> {
    let at_a_time = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let count = targets.len();
    let (waiting, done) = (Mutex::new(VecDeque::from(targets)), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..at_a_time.min(count) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let report = run::fuzz(programs, &target, goal);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut reports = done.into_iter().collect::<Result<Vec<_>>>()?;
    reports.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(reports)
}

fn table(reports: &[Report]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "target",
        "executions",
        "a second",
        "coverage",
        "edges",
        "features",
        "inputs",
        "",
    ]);
    for Report { target, figures, seconds, crash } in reports {
        let rate = if *seconds > 0.0 { figures.rate(*seconds) } else { 0 };
        let numbers = [figures.executions, rate, figures.coverage, figures.edges, figures.features];
        let mut row = vec![target.clone()];
        row.extend(numbers.map(|number| number.to_string()));
        row.push(figures.inputs.to_string());
        row.push(if crash.is_some() { "FAILED".to_owned() } else { String::new() });
        table.add_row(row);
    }
    table.add_row([IN_ALL.to_owned(), in_all(reports).to_string()]);
    table
}

/// What stands in place of a target's name.
const IN_ALL: &str = "in all";

/// Executions of all targets together.
fn in_all(reports: &[Report]) -> u64 {
    reports.iter().map(|report| report.figures.executions).sum()
}

fn verdict(reports: &[Report]) -> Result<()> {
    let mut failed = Vec::new();
    for report in reports {
        let Some(Crash { what, input, log }) = &report.crash else { continue };
        let target = &report.target;
        let again = input.as_ref().map_or_else(
            || format!("no input was kept, see {}", log.display()),
            |input| format!("repeat it: cargo xtask fuzz {target} --input {}", input.display()),
        );
        eprintln!("{target}: {what}\n    {again}");
        failed.push(target.as_str());
    }
    ensure!(failed.is_empty(), "an input fails in {}", failed.join(", "));
    Ok(())
}
