//! `cargo xtask lab` and `cargo xtask bench`: the lab with what it needs.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use vmm_integration::lab::progress::INTERRUPTED_STATUS;

use crate::cargo::{cargo, release_daemon, run, target};

/// Not `release`: where the model finds itself inconsistent it panics, and the lab goes on.
const PROFILE: &str = "explore";
/// Where the daemon is, for the lab.
const DAEMON: &str = "VHOST_DEVICE_BALLOON";
/// What `cargo xtask bench` keeps.
const OUT: &str = "target/lab";

/// Builds the daemon and the lab, and runs the lab with `args`. Its exit code is ours.
///
/// # Errors
/// If either does not build, or the lab cannot be started.
pub(crate) fn lab(args: &[String]) -> Result<ExitCode> {
    let mut command = built()?;
    // The lab has Ctrl-C as well, and ends by itself.
    ctrlc::set_handler(|| {}).context("cannot watch for Ctrl-C")?;
    Ok(ExitCode::from(status(command.args(args))?))
}

/// Runs everything, short or long, and makes the report. What fails is in the exit code; the report
/// is of what there is.
///
/// # Errors
/// As [`lab`].
pub(crate) fn bench(full: bool, resume: bool) -> Result<ExitCode> {
    ctrlc::set_handler(|| {}).context("cannot watch for Ctrl-C")?;
    let mut worst = 0;
    for verb in ["bench", "race"] {
        let mut run = built()?;
        run.args([verb, "--out", OUT, if full { "--full" } else { "--quick" }]);
        if resume {
            run.arg("--resume");
        }
        let code = status(&mut run)?;
        worst = worst.max(code);
        if code == INTERRUPTED_STATUS {
            break;
        }
    }
    let reported = status(built()?.args(["report", "--from", OUT]))?;
    Ok(ExitCode::from(worst.max(reported)))
}

/// The lab's program, built, in the workspace's folder.
fn built() -> Result<Command> {
    let build = ["build", "--locked", "--profile", PROFILE, "--package", "vmm-integration"];
    run(cargo(&build).args(["--bin", "balloon-lab"]))?;
    let mut command = Command::new(target().join(PROFILE).join("balloon-lab"));
    command.current_dir(crate::cargo::root()).env(DAEMON, release_daemon()?);
    Ok(command)
}

/// Runs to the end and gives the exit code; 1 for a signal.
fn status(command: &mut Command) -> Result<u8> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
