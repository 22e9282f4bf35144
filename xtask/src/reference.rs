// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask reference`: the daemon against its reference, for as many steps as are wanted.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;

use crate::cargo::{cargo, run};

/// With optimization, and a panic unwinds: a sequence that fails is shrunk.
const TEST: [&str; 9] = [
    "test",
    "--locked",
    "--profile",
    "explore",
    "--package",
    "vhost-device-balloon",
    "--test",
    "reference",
    "--",
];
const ONE: [&str; 3] = ["--exact", "--nocapture", "daemon_does_what_the_reference_does"];

/// Options of `cargo xtask reference`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many steps are taken, at least: the last sequence comes to its end.
    #[arg(long, default_value_t = 100_000)]
    steps: u64,
    /// Seed of the first sequence, the next one has the next; by default what the clock says.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// If it does not build, or a sequence fails.
pub(crate) fn reference(options: &Options) -> Result<()> {
    let since_1970 = || SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs());
    let seed = options.seed.map_or_else(since_1970, Ok).context("the clock is before 1970")?;
    let figures = tempfile::NamedTempFile::new()?;
    let mut command = cargo(&[&TEST[..], &ONE[..]].concat());
    command.env("REFERENCE_STEPS", options.steps.to_string());
    command.env("REFERENCE_SEED", seed.to_string());
    if options.json {
        command.env("REFERENCE_JSON", figures.path());
        // What cargo and the tests print is no figure.
        command.stdout(std::io::stderr());
    }
    run(&mut command)?;
    if options.json {
        print!("{}", fs::read_to_string(figures.path())?);
    }
    Ok(())
}
