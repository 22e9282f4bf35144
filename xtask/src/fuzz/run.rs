// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs one target from its corpus on.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::build::Programs;
use super::said::{Figures, Said};
use crate::cargo::{root, target};

/// When a target ends.
#[derive(Clone, Copy)]
pub(super) struct Goal {
    pub(super) seconds: u64,
    pub(super) runs: Option<u64>,
    /// Of the random inputs; none for another one each time.
    pub(super) seed: Option<u32>,
}

/// How one target ended.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) target: String,
    #[serde(flatten)]
    pub(super) figures: Figures,
    pub(super) seconds: f64,
    /// What failed, and with which input.
    pub(super) crash: Option<Crash>,
}

/// An input that fails.
#[derive(Debug, Serialize)]
pub(super) struct Crash {
    pub(super) what: String,
    pub(super) input: Option<PathBuf>,
    pub(super) log: PathBuf,
}

/// The longest input. What a target needs more for is made by the target.
const MAX_LEN: &str = "-max_len=2048";
/// No input takes a tenth of this.
const TIMEOUT: &str = "-timeout=20";
const MEMORY: &str = "-rss_limit_mb=1024";

/// Where a target has its inputs, and leaves what it finds.
pub(super) struct Folders {
    /// What is kept in the repository.
    kept: PathBuf,
    /// What was found on this machine, inputs that fail, and what the target says.
    found: PathBuf,
    crashes: PathBuf,
    logs: PathBuf,
}

impl Folders {
    /// Of the sources in `tree`, with what is found in `at`.
    pub(super) fn new(tree: &Path, at: &Path, name: &str) -> Self {
        Self {
            kept: tree.join("fuzz/corpus").join(name),
            found: at.join("corpus").join(name),
            crashes: at.join("crashes"),
            logs: at.to_owned(),
        }
    }

    fn of(name: &str) -> Self {
        Self::new(&root(), &target().join("fuzz"), name)
    }
}

/// Fuzzes until the goal is met or an input fails. Prints what the target says of its progress.
///
/// # Errors
/// If the target cannot be run.
pub(super) fn fuzz(programs: &Programs, name: &str, goal: Goal) -> Result<Report> {
    fuzz_in(&Folders::of(name), programs, name, goal)
}

/// The same with its inputs elsewhere.
///
/// # Errors
/// As [`fuzz`].
pub(super) fn fuzz_in(
    folders: &Folders,
    programs: &Programs,
    name: &str,
    goal: Goal,
) -> Result<Report> {
    let Folders { kept, found, crashes, logs } = folders;
    for folder in [found, kept, crashes] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let log = logs.join(format!("{name}.log"));
    let mut lines = File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = Command::new(programs.path(name));
    command.args([MAX_LEN, TIMEOUT, MEMORY, "-print_final_stats=1"]);
    command.arg(format!("-artifact_prefix={}/{name}-", crashes.display()));
    let runs = if goal.seconds == 0 { Some(0) } else { goal.runs };
    command.args(runs.map(|runs| format!("-runs={runs}")));
    command.args(goal.seed.map(|seed| format!("-seed={seed}")));
    command.args((goal.seconds > 0).then(|| format!("-max_total_time={}", goal.seconds)));
    command.args([found, kept]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let mut said = Said::default();
    let output = child.stderr.take().context("its standard error")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        writeln!(lines, "{line}")?;
        if said.hears(&line) {
            eprintln!("{name:<12} {line}");
        }
    }
    let status = child.wait()?;
    let seconds = started.elapsed().as_secs_f64();
    let crash = (!status.success()).then(|| Crash {
        what: said.failure().unwrap_or_else(|| status.to_string()),
        input: said.input(),
        log,
    });
    Ok(Report { target: name.to_owned(), figures: said.figures(), seconds, crash })
}

/// The targets print what the bytes mean to them.
const SHOW: [(&str, &str); 2] = [("RUST_BACKTRACE", "1"), ("FUZZ_PRINT", "1")];

/// Runs one input.
///
/// # Errors
/// If it fails.
pub(super) fn one(programs: &Programs, name: &str, input: &Path) -> Result<()> {
    ensure!(input.is_file(), "no such input: {}", input.display());
    let mut command = Command::new(programs.path(name));
    let status = command.args([TIMEOUT, MEMORY]).arg(input).envs(SHOW).status();
    let status = status.with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "the input fails: {status}");
    Ok(())
}
