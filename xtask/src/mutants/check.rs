// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds the copy of the sources and runs the check that must notice the mutant in it.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cargo::cargo;
use crate::fuzz::{Fall, hunt};

/// How long an explorer may take. Only one that hangs takes as long.
const LIMIT: Duration = Duration::from_secs(1800);
/// How often it is asked whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// How the check of a mutant ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// A configuration of the explorer fell.
    Fell {
        /// The configuration.
        configuration: String,
        /// Schedules of it until then.
        schedules: u64,
        /// The invariant that broke.
        invariant: String,
        /// What was seen.
        what: String,
    },
    /// A test failed.
    Failed {
        /// `PACKAGE FILTER`.
        test: String,
    },
    /// An oracle of a fuzz target fell.
    Crashed {
        /// The target.
        target: String,
        /// Inputs until then, from the corpus on.
        executions: u64,
        /// What was seen.
        what: String,
    },
    /// The check noticed nothing.
    Survived {
        /// What was checked.
        check: String,
    },
}

/// A line of `cargo explore --json`, as far as it is used here.
#[derive(Deserialize)]
struct Row {
    configuration: String,
    schedules: u64,
    cut_off: u64,
    seed: Option<u64>,
    invariant: Option<String>,
    what: Option<String>,
}

/// A built explorer.
#[derive(Clone, Debug)]
pub(super) struct Explorer(PathBuf);

impl Explorer {
    /// Builds the explorer of the sources in `tree`, with what cargo builds in `build`, as `to`.
    ///
    /// # Errors
    /// If it does not compile.
    pub(super) fn build(tree: &Path, build: &Path, to: PathBuf) -> Result<Self> {
        let args = ["build", "--quiet", "--locked", "--profile", "explore", "--package", "explore"];
        let mut command = cargo(&args);
        command.args(["--features", "shuttle", "--target-dir"]).arg(build).current_dir(tree);
        // Little of it changes from one mutant to the next.
        compile(command.env("CARGO_INCREMENTAL", "1"))?;
        if to.exists() {
            fs::remove_file(&to).with_context(|| to.display().to_string())?;
        }
        let built = build.join("explore/explore");
        fs::hard_link(&built, &to).with_context(|| built.display().to_string())?;
        Ok(Self(to))
    }

    /// Searches the good configurations that `patterns` name until the first falls, `schedules`
    /// schedules of each; `good` is the explorer without a mutant, which must stand what this one
    /// does not.
    ///
    /// # Errors
    /// If an explorer cannot be run, or `good` falls as well.
    pub(super) fn hunt(&self, patterns: &[String], schedules: u64, good: &Self) -> Result<Outcome> {
        let mut rows = self.run(patterns, schedules)?;
        let fallen = rows.iter().position(|row| row.seed.is_some() || row.cut_off > 0);
        let Some(row) = fallen.map(|at| rows.swap_remove(at)) else {
            let check = format!("{} in {schedules} schedules each", patterns.join(", "));
            return Ok(Outcome::Survived { check });
        };
        let same = good.run(std::slice::from_ref(&row.configuration), row.schedules)?;
        ensure!(
            same.iter().all(|row| row.seed.is_none() && row.cut_off == 0),
            "{} falls without the mutant, too: cargo explore --configuration {0}",
            row.configuration
        );
        Ok(Outcome::Fell {
            configuration: row.configuration,
            schedules: row.schedules,
            invariant: row.invariant.unwrap_or_else(|| "cut-off".to_owned()),
            what: row
                .what
                .unwrap_or_else(|| "an actor spins, and the schedule never ends".to_owned()),
        })
    }

    fn run(&self, patterns: &[String], schedules: u64) -> Result<Vec<Row>> {
        let mut command = Command::new(&self.0);
        command.args(["--first", "--json", "--schedules", &schedules.to_string()]);
        command.args(patterns.iter().flat_map(|pattern| ["--configuration", pattern]));
        let output = run_for(&mut command, LIMIT)?;
        let said = String::from_utf8_lossy(&output.stderr);
        // 1 says that a configuration fell.
        ensure!(
            matches!(output.status.code(), Some(0 | 1)),
            "the explorer failed: {}\n{}",
            output.status,
            said.trim()
        );
        let lines = String::from_utf8(output.stdout).context("output of the explorer")?;
        let rows = lines.lines().map(serde_json::from_str).collect::<Result<Vec<_>, _>>();
        rows.with_context(|| format!("output of the explorer: {lines}"))
    }
}

/// Runs a test of the sources in `tree`; `test` is `PACKAGE FILTER`.
///
/// # Errors
/// If it does not compile, or there is no such test.
pub(super) fn test(tree: &Path, build: &Path, test: &str) -> Result<Outcome> {
    let (package, filter) = test
        .split_once(' ')
        .ok_or_else(|| anyhow!("no test (got {test:?}, expected PACKAGE FILTER)"))?;
    let command = || {
        let mut command =
            cargo(&["test", "--quiet", "--locked", "--package", package, "--target-dir"]);
        command.arg(build).current_dir(tree);
        command
    };
    compile(command().arg("--no-run"))?;
    let output = run_for(command().args(["--no-fail-fast", "--", filter]), LIMIT)?;
    let lines = String::from_utf8_lossy(&output.stdout);
    ensure!(
        lines.lines().any(|line| line.starts_with("running ") && !line.starts_with("running 0 ")),
        "{package} has no test that {filter:?} names"
    );
    Ok(match output.status.success() {
        true => Outcome::Survived { check: test.to_owned() },
        false => Outcome::Failed { test: test.to_owned() },
    })
}

/// Runs a fuzz target of the sources in `tree`, with the same inputs each time.
///
/// # Errors
/// If it does not build.
pub(super) fn fuzz(tree: &Path, build: &Path, target: &str, seconds: u64) -> Result<Outcome> {
    Ok(match hunt(tree, &build.join("fuzz"), target, seconds)? {
        Some(Fall { executions, what }) => {
            Outcome::Crashed { target: target.to_owned(), executions, what }
        }
        None => Outcome::Survived { check: format!("{target} for {seconds} s") },
    })
}

fn compile(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("does not compile:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs `command` to its end, and kills it after `limit`.
fn run_for(command: &mut Command, limit: Duration) -> Result<Output> {
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within {} s", limit.as_secs());
        }
        thread::sleep(POLL);
    };
    let read = |file: &mut File| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    Ok(Output { status, stdout: read(&mut out)?, stderr: read(&mut err)? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program that stands for an explorer.
    fn explorer(folder: &Path, name: &str, script: &str) -> Explorer {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        Explorer(path)
    }

    const FELL: &str = r#"echo '{"configuration":"c","schedules":7,"cut_off":0,"seed":6,"invariant":"i","what":"w"}'; exit 1"#;
    const STOOD: &str = r#"echo '{"configuration":"c","schedules":9,"cut_off":0,"seed":null,"invariant":null,"what":null}'"#;

    #[test]
    fn fall_counts_only_if_the_sources_stand() {
        let folder = tempfile::tempdir().expect("a folder");
        let [fell, stood] = [("fell", FELL), ("stood", STOOD)]
            .map(|(name, script)| explorer(folder.path(), name, script));
        let hunt = |mutant: &Explorer, good| mutant.hunt(&["c*".to_owned()], 9, good);
        let [configuration, invariant, what] = ["c", "i", "w"].map(str::to_owned);
        let expected = Outcome::Fell { configuration, schedules: 7, invariant, what };
        assert_eq!(hunt(&fell, &stood).expect("an outcome"), expected);
        let survived = Outcome::Survived { check: "c* in 9 schedules each".to_owned() };
        assert_eq!(hunt(&stood, &fell).expect("an outcome"), survived);
        let error = hunt(&fell, &fell).expect_err("both fall").to_string();
        assert!(error.contains("c falls without the mutant, too"), "{error}");
    }

    #[test]
    fn explorer_that_dies_or_hangs_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let dead = explorer(folder.path(), "dead", "echo no such thing >&2; exit 2");
        let error = dead.run(&[], 1).err().expect("status 2").to_string();
        assert!(error.contains("exit status: 2") && error.contains("no such thing"), "{error}");
        let hung = explorer(folder.path(), "hung", "exec sleep 1000");
        let error = run_for(&mut Command::new(hung.0), Duration::ZERO).expect_err("it hangs");
        assert!(error.to_string().contains("did not end within"), "{error}");
    }
}
