// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask dist`: packages, and a program that needs no library.

pub(crate) mod about;
mod changelog;
mod check;
mod completions;
mod contents;
mod date;
mod deb;
mod folder;
mod glibc;
mod gzip;
mod licenses;
pub(crate) mod linked;
mod linking;
mod man;
#[cfg(feature = "packages")]
mod release;
#[cfg(feature = "packages")]
mod reproducible;
#[cfg(feature = "packages")]
mod rpm;
mod sbom;
#[cfg(feature = "packages")]
mod statically;
mod sums;
#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::Args;

use crate::cargo::target;
use about::PARTS;
use deb::Compression;
use folder::emptied;
#[cfg(feature = "packages")]
use linking::Linking;

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

    /// Builds packages and static program twice instead, and compares them byte by byte.
    ///
    /// The two builds have other folders, for the sources, for what is built and for the packages of cargo, another
    /// umask, locale and time zone, and sources of another age. If a file differs, it is named with the first
    /// place. Some ten minutes.
    #[arg(long, conflicts_with_all = ["is_static", "check"])]
    check_reproducible: bool,
}

/// Has cargo build this program with what writes packages, and does it there.
///
/// # Errors
/// As the other one.
#[cfg(not(feature = "packages"))]
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut again = crate::cargo::cargo(&["run", "--locked", "--package", "xtask"]);
    again.args(["--features", "packages", "--", "dist"]);
    again.args(options.is_static.then_some("--static"));
    again.args(options.check_reproducible.then_some("--check-reproducible"));
    crate::cargo::run(again.args(options.check.then_some("--check")))
}

/// Builds the release of the programs, and what they are distributed in, into `target/dist`.
///
/// # Errors
/// If something does not build, cannot be written, or does not pass the checks.
#[cfg(feature = "packages")]
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.check_reproducible {
        return reproducible::check();
    }
    if options.is_static {
        return statically(options.check);
    }
    let folder = emptied("packages")?;
    let mut programs = Vec::new();
    for part in PARTS {
        let release = release::build(part, Linking::Dynamic)?;
        bill(&release, Linking::Dynamic, &folder)?;
        programs.push((part, release.program));
    }
    let packages =
        [deb::write(&programs, &folder, Compression::Xz)?, rpm::write(&programs, &folder)?];
    sums::write(&folder)?;
    packages.iter().for_each(|package| println!("package: {}", package.display()));
    if options.check {
        check::deb(&packages[0])?;
        check::rpm(&packages[1])?;
    }
    Ok(())
}

#[cfg(feature = "packages")]
fn statically(check: bool) -> Result<()> {
    let folder = emptied("static")?;
    let release = statically::build(&folder)?;
    bill(&release, Linking::Static, &folder)?;
    sums::write(&folder)?;
    println!("static: {}", release.program.display());
    if check { statically::check(&release.program) } else { Ok(()) }
}

/// Writes the bill of materials into `folder`, and compares it with what was compiled.
#[cfg(feature = "packages")]
fn bill(release: &release::Release, linking: Linking, folder: &std::path::Path) -> Result<()> {
    use anyhow::Context as _;

    let program = std::fs::read(&release.program)?;
    let bill = sbom::of(release.part, &program, linking)?;
    sbom::check(&bill, &release.compiled)?;
    let (name, count) = (release.part.name(), release.compiled.len());
    println!("bill of materials of {name}: {count} packages, as compiled");
    std::fs::write(folder.join(sbom::file(release.part)), bill)
        .context("cannot write the bill of materials")
}

/// Writes a package with the programs that the tests were built with, and tries it.
///
/// # Errors
/// If it does not pass.
pub(crate) fn check_for_tests() -> Result<()> {
    let programs = PARTS.map(|part| (part, target().join("debug").join(part.name())));
    check::deb(&deb::write(&programs, &emptied("tested")?, Compression::None)?)
}
