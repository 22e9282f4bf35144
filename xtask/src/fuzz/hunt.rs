// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has a target look for a fault that was planted in a copy of the sources.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::build::{Programs, Sanitizer};
use super::run::{self, Folders, Goal};

/// How a target fell.
pub(crate) struct Fall {
    /// Inputs until then.
    pub(crate) executions: u64,
    /// What the oracle says.
    pub(crate) what: String,
}

/// Builds the target `name` of the sources in `tree`, and runs it from their corpus on, with the same
/// random inputs each time, for at most `seconds`.
///
/// # Errors
/// If it does not build, or cannot be run.
pub(crate) fn hunt(tree: &Path, build: &Path, name: &str, seconds: u64) -> Result<Option<Fall>> {
    let programs = Programs::build_of(tree, build, Sanitizer::None, &[name.to_owned()])?;
    let at = build.join("hunt");
    if at.exists() {
        fs::remove_dir_all(&at)?;
    }
    let goal = Goal { seconds, runs: None, seed: Some(1) };
    let report = run::fuzz_in(&Folders::new(tree, &at, name), &programs, name, goal)?;
    let executions = report.figures.executions;
    Ok(report.crash.map(|crash| Fall { executions, what: crash.what }))
}
