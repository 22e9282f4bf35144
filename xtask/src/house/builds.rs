// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask` and the tests share what they are built of.
//!
//! Cargo builds a package, and all that depends on it, once for each set of features. A feature that only a test
//! turns on of a package as low as memchr had half of the dependencies built twice.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::cargo::cargo;

/// # Errors
/// If a package of this program has other features in the build of all tests.
pub(super) fn check() -> Result<()> {
    let program = packages(&["--package", "xtask", "--edges", "normal,build"])?;
    let tests = packages(&["--workspace"])?;
    let other: Vec<&String> = program.difference(&tests).collect();
    ensure!(
        other.is_empty(),
        "built once for xtask and once for the tests: {other:#?}\nGive xtask/Cargo.toml the features \
         that `cargo tree --workspace --edges features` has."
    );
    Ok(())
}

/// The packages, each with its features.
fn packages(of: &[&str]) -> Result<BTreeSet<String>> {
    let mut tree = cargo(&["tree", "--locked", "--prefix", "none", "--format", "{p} {f}"]);
    let output = tree.args(of).output().context("cargo tree")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).context("output of cargo tree")?;
    Ok(lines.lines().map(|line| line.trim_end_matches(" (*)").trim_end().to_owned()).collect())
}
