// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask mutants`: plants known faults in a copy of the sources, to see that the checks notice
//! each.
//!
//! | file | |
//! |---|---|
//! | `list` | the mutants, from the files in `mutants` |
//! | `tree` | the copy of the sources |
//! | `check` | builds it and runs what must notice |
//! | `table` | `docs/research/mutants.md` |

mod check;
mod list;
mod table;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cargo::{root, target};
use check::{Explorer, Outcome};
use list::{CaughtBy, Mutant};
use tree::Tree;

/// Where the lists are, from the workspace's folder.
const LISTS: &str = "mutants";
/// Seconds for which a fuzz target must stand without a mutant, and within which it must find one.
const STANDS: u64 = 10;
const HUNTS: u64 = 120;

const HELP: &str = "\
The sources are copied to target/mutants, which has a build folder of its own; they are not touched.
A mutant that does not compile or does not apply is an error. So is a fall of a configuration in which
the sources without the mutant fall, too.

With --json each mutant is an object on a line of its own:
  mutant, seconds
  outcome        fell (with configuration, schedules, invariant, what), failed (with test), crashed
                 (with target, executions, what), survived (with check), or error (with error)";

/// Options of `cargo xtask mutants`.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Mutants to plant [default: all of them].
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only those that CI plants.
    #[arg(long, conflicts_with = "names")]
    quick: bool,
    /// Lists the mutants and exits.
    #[arg(long, conflicts_with_all = ["json", "table"])]
    list: bool,
    /// Explorers side by side, while the next is built [default: number of CPUs].
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<NonZero<usize>>,
    /// Schedules of each configuration in which a mutant must fall.
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    schedules: u64,
    /// File that the results are written to, as a page in Markdown.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["names", "quick"])]
    table: Option<PathBuf>,
    /// Prints the results as JSON, a line a mutant.
    #[arg(long)]
    json: bool,
}

/// Plants all of them for the tests, or those that CI plants.
///
/// # Errors
/// As [`run`].
pub(crate) fn for_tests(full: bool) -> Result<()> {
    run(&Options {
        names: Vec::new(),
        quick: !full,
        list: false,
        jobs: None,
        schedules: 20_000,
        table: None,
        json: false,
    })
}

/// Plants the mutants that the options name.
///
/// # Errors
/// If one survives or cannot be checked.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mutants = chosen(list::load(&root().join(LISTS))?, options)?;
    if options.list {
        for Mutant { name, room, about, quick, .. } in &mutants {
            println!("{name:40} {room:12} {:6} {about}", if *quick { "quick" } else { "" });
        }
        return Ok(());
    }
    let folder = target().join("mutants");
    fs::create_dir_all(folder.join("bin")).with_context(|| folder.display().to_string())?;
    let _lock = lock(&folder.join("lock"))?;
    let started = Instant::now();
    let results = plant(&mutants, options, &folder)?;

    let caught = |name: &String| {
        use Outcome::{Crashed, Failed, Fell};
        matches!(results.get(name), Some(Ok(Fell { .. } | Failed { .. } | Crashed { .. })))
    };
    let left: Vec<&str> =
        mutants.iter().map(|m| &m.name).filter(|&name| !caught(name)).map(String::as_str).collect();
    if let Some(path) = &options.table {
        ensure!(left.is_empty(), "no table, for these are not caught: {}", left.join(", "));
        let rows = mutants
            .iter()
            .filter_map(|mutant| Some((mutant, results.get(&mutant.name)?.as_ref().ok()?)));
        fs::write(path, table::markdown(rows)).with_context(|| path.display().to_string())?;
    }
    let (all, seconds) = (mutants.len(), started.elapsed().as_secs());
    ensure!(left.is_empty(), "{} of {all} mutants are not caught: {}", left.len(), left.join(", "));
    if !options.json {
        println!("All {all} mutants are caught, {seconds} s.");
    }
    Ok(())
}

fn chosen(mut all: Vec<Mutant>, options: &Options) -> Result<Vec<Mutant>> {
    let Options { names, quick, .. } = options;
    for name in names {
        ensure!(
            all.iter().any(|mutant| mutant.name == *name),
            "no mutant is called {name:?}; --list has their names"
        );
    }
    all.retain(|mutant| {
        (names.is_empty() || names.contains(&mutant.name)) && (!quick || mutant.quick)
    });
    Ok(all)
}

/// Two runs at once would change each other's copy.
fn lock(path: &std::path::Path) -> Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        eprintln!("Waiting for another run, which holds {}.", path.display());
        file.lock().with_context(|| path.display().to_string())?;
    }
    Ok(file)
}

type Results = BTreeMap<String, Result<Outcome>>;

/// Plants each of `mutants`, one after the other. Its explorer runs while the next is built.
fn plant(mutants: &[Mutant], options: &Options, folder: &std::path::Path) -> Result<Results> {
    let (build, bin) = (folder.join("build"), folder.join("bin"));
    let mut tree = Tree::new(root(), folder.join("tree"))?;
    if !options.json {
        println!("Building the sources without a mutant into {}.", folder.display());
    }
    let explored = mutants.iter().any(|mutant| matches!(mutant.caught_by, CaughtBy::Explore(_)));
    let unchanged = || Explorer::build(tree.path(), &build, bin.join("unchanged"));
    let good = explored.then(unchanged).transpose()?;
    for test in mutants.iter().filter_map(|mutant| match &mutant.caught_by {
        CaughtBy::Test(test) => Some(test),
        CaughtBy::Explore(_) | CaughtBy::Fuzz(_) => None,
    }) {
        let outcome = check::test(tree.path(), &build, test)?;
        ensure!(matches!(outcome, Outcome::Survived { .. }), "{test} fails without a mutant, too");
    }
    let fuzzed: BTreeSet<&String> = mutants
        .iter()
        .filter_map(|mutant| match &mutant.caught_by {
            CaughtBy::Fuzz(target) => Some(target),
            CaughtBy::Explore(_) | CaughtBy::Test(_) => None,
        })
        .collect();
    for target in fuzzed {
        let outcome = check::fuzz(tree.path(), &build, target, STANDS)?;
        let stands = matches!(outcome, Outcome::Survived { .. });
        ensure!(stands, "{target} fails without a mutant, too: {outcome:?}");
    }

    let jobs = options.jobs.or(thread::available_parallelism().ok()).map_or(1, NonZero::get);
    // So few binaries wait for an explorer to end.
    let (send, receive) = mpsc::sync_channel::<(&Mutant, Instant, Explorer, &[String])>(jobs);
    let receive = Mutex::new(receive);
    let results = Mutex::new(Results::new());
    let done = |mutant: &Mutant, since: Instant, result: Result<Outcome>| {
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert(mutant.name.clone(), result);
        let result = &results[&mutant.name];
        if options.json {
            println!("{}", json(mutant, result, since.elapsed()));
        } else {
            let seconds = since.elapsed().as_secs();
            let (at, all) = (results.len(), mutants.len());
            println!("[{at}/{all}] {}: {} ({seconds} s)", mutant.name, line(result));
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let Some(good) = &good else { return };
                loop {
                    let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((mutant, since, explorer, patterns)) = next else { return };
                    done(mutant, since, explorer.hunt(patterns, options.schedules, good));
                }
            });
        }
        for mutant in mutants {
            let since = Instant::now();
            let planted = tree.plant(mutant);
            let checked = planted.and_then(|()| match &mutant.caught_by {
                CaughtBy::Test(test) => check::test(tree.path(), &build, test).map(Some),
                CaughtBy::Fuzz(target) => check::fuzz(tree.path(), &build, target, HUNTS).map(Some),
                CaughtBy::Explore(patterns) => {
                    let to = bin.join(&mutant.name);
                    let explorer = Explorer::build(tree.path(), &build, to)?;
                    // The receiver lives as long as this.
                    let _ = send.send((mutant, since, explorer, patterns));
                    Ok(None)
                }
            });
            if let Some(result) = checked.transpose() {
                done(mutant, since, result);
            }
        }
        drop(send);
    });
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn line(result: &Result<Outcome>) -> String {
    match result {
        Ok(Outcome::Fell { configuration, schedules, invariant, what }) => {
            format!("fell after {schedules} schedules of {configuration}: {invariant}: {what}")
        }
        Ok(Outcome::Failed { test }) => format!("fell to a test: {test}"),
        Ok(Outcome::Crashed { target, executions, what }) => {
            format!("fell after {executions} executions of {target}: {what}")
        }
        Ok(Outcome::Survived { check }) => format!("SURVIVED {check}"),
        Err(error) => format!("ERROR {error:#}"),
    }
}

fn json(mutant: &Mutant, result: &Result<Outcome>, took: Duration) -> serde_json::Value {
    let mut json = match result {
        Ok(outcome) => serde_json::json!(outcome),
        Err(error) => serde_json::json!({"outcome": "error", "error": format!("{error:#}")}),
    };
    json["mutant"] = mutant.name.clone().into();
    json["seconds"] = took.as_secs_f64().into();
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutants() -> Vec<Mutant> {
        list::load(&root().join(LISTS)).expect("the lists can be read")
    }

    #[test]
    fn every_mutant_applies_to_the_sources() {
        for mutant in mutants() {
            let source = fs::read_to_string(root().join(&mutant.file)).expect(&mutant.file);
            let changed = mutant.apply(&source).expect(&mutant.name);
            assert_ne!(changed, source, "{} changes nothing", mutant.name);
        }
    }

    #[test]
    fn mutants_have_names_and_sentences() {
        for Mutant { name, about, .. } in mutants() {
            let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.chars().all(kebab), "{name:?} is not in kebab-case");
            assert!(!about.contains(['|', '\n']) && !about.ends_with('.'), "{about:?}");
        }
    }

    #[test]
    fn page_lists_exactly_the_mutants() {
        let page = include_str!("../../../docs/research/mutants.md");
        let rows = page.lines().filter(|line| line.ends_with("` |"));
        let listed: Vec<_> = rows.filter_map(|row| row.split(" | ").next()).collect();
        let names: Vec<_> = mutants().iter().map(|mutant| format!("| {}", mutant.name)).collect();
        assert_eq!(listed, names, "cargo xtask mutants --table docs/research/mutants.md");
    }

    #[test]
    fn there_are_enough_mutants() {
        let all = mutants();
        assert!(all.len() >= 40, "there are {} mutants, expected at least 40", all.len());
        let quick = all.iter().filter(|mutant| mutant.quick).count();
        assert!((6..=20).contains(&quick), "{quick} are quick, expected 6 to 20");
    }
}
