// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask lab` and `cargo xtask bench`: the lab with what it needs.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{cargo, release_daemon, run, target};

/// Not `release`: where the model finds itself inconsistent it panics, and the lab goes on.
const PROFILE: &str = "explore";
/// Where the daemon is, for the lab.
const DAEMON: &str = "VHOST_DEVICE_BALLOON";
/// What `cargo xtask bench` keeps.
const OUT: &str = "target/lab";

/// Builds the daemon and the lab, and becomes the lab with `args`: signals and the exit code are its
/// own.
///
/// # Errors
/// If either does not build, or the lab cannot be started.
pub(crate) fn lab(args: &[String]) -> Result<Infallible> {
    let mut command = built()?;
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot start {command:?}"))
}

/// Becomes a run of everything, short or long, that makes the report of what there is in the end.
///
/// # Errors
/// As [`lab`].
pub(crate) fn bench(full: bool, resume: bool) -> Result<Infallible> {
    let length = if full { "--full" } else { "--quick" };
    let args = ["all", "--out", OUT, length].into_iter().chain(resume.then_some("--resume"));
    lab(&args.map(str::to_owned).collect::<Vec<_>>())
}

/// The lab's program, built, in the workspace's folder.
fn built() -> Result<Command> {
    let build = ["build", "--locked", "--profile", PROFILE, "--package", "balloon-lab"];
    run(cargo(&build).args(["--bin", "balloon-lab"]))?;
    let mut command = Command::new(target().join(PROFILE).join("balloon-lab"));
    command.current_dir(crate::cargo::root()).env(DAEMON, release_daemon()?);
    Ok(command)
}
