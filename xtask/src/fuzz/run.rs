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

/// What is kept in the repository.
fn corpus(name: &str) -> PathBuf {
    root().join("fuzz/corpus").join(name)
}

/// What was found on this machine.
fn found(name: &str) -> PathBuf {
    target().join("fuzz/corpus").join(name)
}

/// Fuzzes until the goal is met or an input fails. Prints what the target says of its progress.
///
/// # Errors
/// If the target cannot be run.
pub(super) fn fuzz(programs: &Programs, name: &str, goal: Goal) -> Result<Report> {
    let (found, kept) = (found(name), corpus(name));
    let crashes = target().join("fuzz/crashes");
    for folder in [&found, &kept, &crashes] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let log = target().join(format!("fuzz/{name}.log"));
    let mut lines = File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = Command::new(programs.path(name));
    command.args([MAX_LEN, TIMEOUT, MEMORY, "-print_final_stats=1"]);
    command.arg(format!("-artifact_prefix={}/{name}-", crashes.display()));
    let runs = if goal.seconds == 0 { Some(0) } else { goal.runs };
    command.args(runs.map(|runs| format!("-runs={runs}")));
    command.args(goal.seed.map(|seed| format!("-seed={seed}")));
    command.args((goal.seconds > 0).then(|| format!("-max_total_time={}", goal.seconds)));
    command.args([&found, &kept]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
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

/// Runs one input.
///
/// # Errors
/// If it fails.
pub(super) fn one(programs: &Programs, name: &str, input: &Path) -> Result<()> {
    ensure!(input.is_file(), "no such input: {}", input.display());
    let mut command = Command::new(programs.path(name));
    let status = command.args([TIMEOUT, MEMORY]).arg(input).env("RUST_BACKTRACE", "1").status();
    let status = status.with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "the input fails: {status}");
    Ok(())
}

/// Makes the corpus in the repository the smallest that reaches every edge that is reached.
///
/// # Errors
/// If the target cannot be run.
pub(super) fn keep(programs: &Programs, name: &str) -> Result<()> {
    let (found, kept) = (found(name), corpus(name));
    let new = target().join("fuzz/kept").join(name);
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| new.display().to_string())?;
    }
    fs::create_dir_all(&new).with_context(|| new.display().to_string())?;
    let mut command = Command::new(programs.path(name));
    // Edges alone: how often each was passed would keep thousands.
    command.args(["-set_cover_merge=1", "-use_counters=0", MAX_LEN, TIMEOUT, MEMORY]);
    command.args([&new, &kept, &found]).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "merging the corpus of {name} failed: {status}");
    fs::remove_dir_all(&kept)?;
    fs::create_dir_all(&kept)?;
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(&new)? {
        let entry = entry?;
        bytes += fs::copy(entry.path(), kept.join(entry.file_name()))?;
        files += 1;
    }
    eprintln!("{name}: {files} inputs, {bytes} bytes in {}", kept.display());
    Ok(())
}
