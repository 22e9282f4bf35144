// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon that needs no library of its host, and the recipe of an image with nothing else in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::about::{NAME, Part, VERSION};
use super::check::{Daemon, is_root};
use super::glibc;
use super::linking::Linking;
use super::release::{self, Release};
use crate::cargo::root;

/// Builds it into `folder`; returns it, where it is there.
///
/// # Errors
/// If it does not build, or needs a library after all.
pub(super) fn build(folder: &Path) -> Result<Release> {
    let built = release::build(Part::Daemon, Linking::Static)?;
    let program = folder.join(NAME);
    fs::copy(&built.program, &program)
        .with_context(|| format!("cannot copy {}", built.program.display()))?;
    let recipe = root().join("packaging/container/Containerfile");
    fs::copy(&recipe, folder.join("Containerfile"))
        .with_context(|| format!("cannot copy {}", recipe.display()))?;
    let bytes = fs::read(&program)?;
    ensure!(glibc::is_static(&bytes), "{} asks for a loader", program.display());
    Ok(Release { program, ..built })
}

/// Runs it in a folder that holds nothing else, as a container does.
///
/// # Errors
/// If it does not answer there.
pub(super) fn check(daemon: &Path) -> Result<()> {
    ensure!(is_root(), "the check needs root, to change the root directory");
    let alone = tempfile::tempdir()?;
    fs::copy(daemon, alone.path().join(NAME))?;
    fs::create_dir(alone.path().join("run"))?;
    let inside = || {
        let mut command = Command::new("chroot");
        command.arg(alone.path()).arg(format!("/{NAME}"));
        command
    };
    let output = inside().arg("--version").output().context("cannot start chroot")?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(version == format!("{NAME} {VERSION}\n"), "unexpected: {output:?}");
    let mut command = inside();
    command.args(["--socket-path", "/run/balloon.sock", "--control-socket", "/run/balloon.ctl"]);
    // A group is looked up in a file, without a library.
    fs::create_dir(alone.path().join("etc"))?;
    fs::write(alone.path().join("etc/group"), "root:x:0:\nballoon:x:4711:\n")?;
    command.args(["--socket-group", "balloon", "--socket-mode", "0660"]);
    let running = Daemon::start(&mut command)?;
    running.answers(daemon, &alone.path().join("run/balloon.ctl"))?;
    running.end()?;
    println!("static: runs and answers with nothing beside it");
    Ok(())
}
