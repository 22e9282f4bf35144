// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs cargo, the one that runs this program.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The variable that names a copy of the sources, for a command that is to work on it.
pub(crate) const ROOT: &str = "XTASK_ROOT";

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    if let Some(copy) = env::var_os(ROOT) {
        return copy.into();
    }
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Cargo with these arguments, in the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs `command` to its end.
///
/// # Errors
/// If it cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Builds the daemon as it is released, and tells where it is.
///
/// # Errors
/// If it does not build.
pub(crate) fn release_daemon() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--locked", "--release", "--package", "vhost-device-balloon"]))?;
    Ok(target().join("release/vhost-device-balloon"))
}
