// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask dist`: packages, and a program that needs no library.

mod about;
mod changelog;
mod check;
mod completions;
mod contents;
mod date;
mod deb;
mod glibc;
mod gzip;
mod licenses;
mod man;
mod release;
#[cfg(feature = "rpm")]
mod rpm;
mod statically;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::cargo::{run as finish, target};
use about::NAME;
use deb::Compression;

/// Options of `cargo xtask dist`.
#[derive(Args)]
pub(crate) struct Options {
    /// Builds a program that needs no library of its host, with a recipe for a container image, into
    /// target/dist/static, instead of packages.
    #[arg(long = "static")]
    is_static: bool,

    /// Also tries what was built: installs it into an empty folder, runs it, removes it.
    ///
    /// Needs root. What needs a program that this machine lacks, such as rpm, is left out and named.
    #[arg(long)]
    check: bool,
}

/// Builds the release of the daemon, and what it is distributed in, into `target/dist`.
///
/// # Errors
/// If something does not build, cannot be written, or does not pass the checks.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.is_static {
        let folder = emptied("static")?;
        let daemon = statically::build(&folder)?;
        println!("static: {}", daemon.display());
        return if options.check { statically::check(&daemon) } else { Ok(()) };
    }
    packages(options)
}

/// Has cargo build this program with what writes the other package, and does it there.
#[cfg(not(feature = "rpm"))]
fn packages(options: &Options) -> Result<()> {
    let mut again = crate::cargo::cargo(&["run", "--locked", "--package", "xtask"]);
    again.args(["--features", "rpm", "--", "dist"]);
    finish(again.args(options.check.then_some("--check")))
}

#[cfg(feature = "rpm")]
fn packages(options: &Options) -> Result<()> {
    finish(&mut release::release())?;
    let daemon = target().join("release").join(NAME);
    let folder = emptied("packages")?;
    let packages = [deb::write(&daemon, &folder, Compression::Xz)?, rpm::write(&daemon, &folder)?];
    packages.iter().for_each(|package| println!("package: {}", package.display()));
    if options.check {
        check::deb(&packages[0])?;
        check::rpm(&packages[1])?;
    }
    Ok(())
}

/// Writes a package with the daemon that the tests were built with, and tries it.
///
/// # Errors
/// If it does not pass.
pub(crate) fn check_for_tests() -> Result<()> {
    let daemon = target().join("debug").join(NAME);
    check::deb(&deb::write(&daemon, &emptied("tested")?, Compression::None)?)
}

/// A folder of `target/dist` without what was there.
fn emptied(name: &str) -> Result<PathBuf> {
    let folder = target().join("dist").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
