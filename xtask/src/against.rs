// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench guest --against REVISION`: the model's allocator beside an earlier one.
//!
//! Other work on the machine, its clock and its memory move a figure more than most changes do. So
//! both programs are built first, and take turns at each row.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cargo::{cargo, root, target};

/// The benchmark that is compared.
const BENCH: &str = "guest";
/// What it is asked for, one at a time (`--only`).
const ROWS: [&str; 8] = [
    "order 0, 1 threads, Bulk",
    "order 0, 1 threads, Repeat",
    "order 0, 2 threads, Bulk",
    "order 0, 2 threads, Repeat",
    "order 9, 1 threads, Bulk",
    "order 9, 1 threads, Repeat",
    "order 9, 2 threads, Bulk",
    "order 9, 2 threads, Repeat",
];

/// What to compare, and how.
pub(crate) struct Options {
    pub(crate) revision: String,
    pub(crate) rounds: u32,
    pub(crate) all: bool,
    pub(crate) json: bool,
}

/// What the benchmark prints with `--json`, as far as it is compared.
#[derive(Deserialize)]
struct Figures {
    pairs: Vec<Figure>,
}

#[derive(Clone, Deserialize)]
struct Figure {
    #[serde(flatten)]
    work: Work,
    off_ns_a_pair: f64,
    on_ns_a_pair: f64,
}

impl Figure {
    fn ns_a_pair(&self, reporting: bool) -> f64 {
        if reporting { self.on_ns_a_pair } else { self.off_ns_a_pair }
    }
}

/// What was measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Work {
    tracker: String,
    holding: String,
    order: u8,
    threads: usize,
    what: String,
}

/// Both programs in one round.
struct Turn {
    old: Vec<Figure>,
    new: Vec<Figure>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Row {
    #[serde(flatten)]
    work: Work,
    reporting: &'static str,
    /// Nanoseconds a pair, medians of the rounds.
    old_ns: f64,
    new_ns: f64,
    /// Of these medians; below 1 the new one is faster.
    new_over_old: f64,
    /// Of the rounds' own ratios.
    least: f64,
    most: f64,
}

#[derive(Serialize)]
struct Comparison<'a> {
    old: &'a str,
    rounds: u32,
    rows: Vec<Row>,
}

/// Builds and measures both, and prints the rows.
///
/// # Errors
/// If there is no such revision, a program does not build or fails, or the revision's has no such
/// rows.
pub(crate) fn run_against(options: &Options) -> Result<()> {
    let Options { revision, rounds, all, json } = options;
    ensure!(*rounds > 0, "rounds is 0: expected 1 or more");
    let commit = git(&root(), &["rev-parse", "--verify", &format!("{revision}^{{commit}}")])
        .with_context(|| format!("{revision} is no commit of this repository"))?;
    let folder = target().join("against");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let tree = Worktree::add(root(), folder.join("worktree"), &commit)?;
    let old = build(&tree.path, &folder.join("build"))?;
    let new = build(&root(), &target())?;

    let mut turns = Vec::new();
    for row in ROWS {
        for round in 0..*rounds {
            eprintln!("round {} of {rounds}", round + 1);
            let measure = |program: &Path| measure(program, row, *all);
            // Neither is always the first.
            let (old, new) = if round % 2 == 0 {
                let old = measure(&old)?;
                (old, measure(&new)?)
            } else {
                let new = measure(&new)?;
                (measure(&old)?, new)
            };
            turns.push(Turn { old, new });
        }
    }
    let rows = compare(&turns);
    ensure!(!rows.is_empty(), "the two benchmarks have no row in common");
    if *json {
        let comparison = Comparison { old: &commit, rounds: *rounds, rows };
        println!("{}", serde_json::to_string_pretty(&comparison)?);
    } else {
        print(&commit, *rounds, &rows);
    }
    Ok(())
}

/// A checkout beside the workspace, removed when it is dropped.
struct Worktree {
    repository: PathBuf,
    path: PathBuf,
}

impl Worktree {
    fn add(repository: PathBuf, path: PathBuf, commit: &str) -> Result<Self> {
        let tree = Self { repository, path };
        // One that a killed run has left.
        tree.remove();
        let path = tree.path.to_str().context("the folder's name is no text")?;
        git(
            &tree.repository,
            &["worktree", "add", "--quiet", "--detach", "--force", path, commit],
        )?;
        Ok(tree)
    }

    fn remove(&self) {
        if let Some(path) = self.path.to_str() {
            // That there is none is no failure.
            let _ = git(&self.repository, &["worktree", "remove", "--force", path]);
        }
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What git prints.
fn git(repository: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.args(args).current_dir(repository);
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Builds the benchmark of the workspace at `source`, and returns its program.
fn build(source: &Path, target: &Path) -> Result<PathBuf> {
    let args = ["bench", "--locked", "--bench", BENCH, "--no-run"];
    let mut command = cargo(&args);
    command
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(source)
        .env("CARGO_TARGET_DIR", target)
        .stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    let messages = String::from_utf8(output.stdout)?;
    messages.lines().find_map(program).context("cargo named no program of the benchmark")
}

/// The benchmark's program, if this message of cargo is about it.
fn program(message: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Artifact {
        target: Target,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let artifact: Artifact = serde_json::from_str(message).ok()?;
    let is_bench = artifact.target.kind.iter().any(|kind| kind == "bench");
    artifact.executable.filter(|_| is_bench && artifact.target.name == BENCH)
}

/// Runs the benchmark for one row. That a goal is missed fails it after it has printed.
fn measure(program: &Path, row: &str, all: bool) -> Result<Vec<Figure>> {
    let mut command = Command::new(program);
    command.args(["--json", "--only", row]).args(all.then_some("--all"));
    command.current_dir(root()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let figures: Figures = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{command:?} printed no figures: {}", output.status))?;
    Ok(figures.pairs)
}

/// The rows that both have, in the order of the turns.
fn compare(turns: &[Turn]) -> Vec<Row> {
    let mut works: Vec<&Work> = Vec::new();
    for figure in turns.iter().flat_map(|turn| &turn.new) {
        if !works.contains(&&figure.work) {
            works.push(&figure.work);
        }
    }
    let mut rows = Vec::new();
    for work in works {
        let of = |figures: &[Figure]| figures.iter().find(|figure| figure.work == *work).cloned();
        let both: Vec<(Figure, Figure)> =
            turns.iter().filter_map(|turn| Some((of(&turn.old)?, of(&turn.new)?))).collect();
        for reporting in ["off", "on"] {
            let ns = |figure: &Figure| figure.ns_a_pair(reporting == "on");
            let old = sorted(both.iter().map(|(old, _)| ns(old)));
            let new = sorted(both.iter().map(|(_, new)| ns(new)));
            let ratios = sorted(both.iter().map(|(old, new)| ns(new) / ns(old)));
            let (Some(old_ns), Some(new_ns)) = (median(&old), median(&new)) else { continue };
            let (Some(&least), Some(&most)) = (ratios.first(), ratios.last()) else { continue };
            let new_over_old = new_ns / old_ns;
            let work = work.clone();
            rows.push(Row { work, reporting, old_ns, new_ns, new_over_old, least, most });
        }
    }
    rows
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let above = sorted.get(middle)?;
    Some(match sorted.len() % 2 {
        0 => f64::midpoint(sorted[middle - 1], *above),
        _ => *above,
    })
}

fn print(commit: &str, rounds: u32, rows: &[Row]) {
    let commit = &commit[..commit.len().min(12)];
    println!(
        "Allocate/free pairs in ns, {commit} (old) and the working tree (new): medians of {rounds} \
         rounds in which both take turns"
    );
    println!(
        "tracker      holding  order  threads  use     reporting       old       new   new/old  \
         (least, most)"
    );
    for row in rows {
        let Work { tracker, holding, order, threads, what } = &row.work;
        println!(
            "{tracker:<12} {holding:<8} {order:>5}  {threads:>7}  {what:<6}  {:<9}  {:>8.1}  \
             {:>8.1}   {:>7.3}  ({:.3}, {:.3})",
            row.reporting, row.old_ns, row.new_ns, row.new_over_old, row.least, row.most
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run prints, more than is read included.
    fn figures(order: u8, off: f64, on: f64) -> Vec<Figure> {
        let text = format!(
            r#"{{"lock_unlock_ns": 9.5, "pairs": [{{"order": {order}, "threads": 2, "what": "Bulk",
            "tracker": "section-bit", "holding": "isolate", "off_ns_a_pair": {off},
            "on_ns_a_pair": {on}, "on_over_off": [1.0]}}]}}"#
        );
        serde_json::from_str::<Figures>(&text).unwrap().pairs
    }

    #[test]
    fn rows_compare_medians_and_spread() {
        let turn = |old, new| Turn { old: figures(0, old, 50.0), new: figures(0, new, 25.0) };
        let rows = compare(&[turn(10.0, 20.0), turn(40.0, 20.0), turn(20.0, 30.0)]);
        assert_eq!(rows.len(), 2);
        let off = &rows[0];
        assert_eq!((off.reporting, off.work.order, off.work.what.as_str()), ("off", 0, "Bulk"));
        assert_eq!([off.old_ns, off.new_ns, off.new_over_old], [20.0, 20.0, 1.0]);
        assert_eq!([off.least, off.most], [0.5, 2.0]);
        assert_eq!((rows[1].reporting, rows[1].new_over_old), ("on", 0.5));
    }

    #[test]
    fn rows_of_one_side_are_left_out() {
        let turns = [Turn { old: figures(0, 1.0, 1.0), new: figures(9, 1.0, 1.0) }];
        assert_eq!(compare(&turns), []);
    }

    #[test]
    fn program_is_that_of_the_benchmark() {
        let message = |kind: &str, name: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},
                "executable":"/t/{name}-1"}}"#
            )
        };
        assert_eq!(program(&message("bench", "guest")), Some(PathBuf::from("/t/guest-1")));
        assert_eq!(program(&message("bin", "guest")), None);
        assert_eq!(program(&message("bench", "device")), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
    }

    #[test]
    fn worktree_is_removed_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("repository");
        fs::create_dir(&repository).unwrap();
        git(&repository, &["init", "--quiet"]).unwrap();
        let config = ["-c", "user.name=name", "-c", "user.email=name@localhost"];
        let commit = ["commit", "--quiet", "--allow-empty", "--message", "first"];
        git(&repository, &[&config[..], &commit[..]].concat()).unwrap();
        let path = folder.path().join("tree");
        let tree = Worktree::add(repository.clone(), path.clone(), "HEAD").unwrap();
        assert!(path.join(".git").exists());
        // As after a run that was killed.
        std::mem::forget(tree);
        drop(Worktree::add(repository.clone(), path.clone(), "HEAD").unwrap());
        assert!(!path.exists());
        assert_eq!(git(&repository, &["worktree", "list"]).unwrap().lines().count(), 1);
        assert!(git(&repository, &["rev-parse", "--verify", "nothing^{commit}"]).is_err());
    }
}
