// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask audit`: what everything here is built of, against `deny.toml`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cargo::{root, run as finish};
use crate::tools::Tool;

const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };

/// The workspaces. The first has the packages that the exceptions in `deny.toml` are for.
pub(crate) const WORKSPACES: [&str; 4] = [
    "Cargo.toml",
    "fuzz/Cargo.toml",
    "guest-driver/bare/Cargo.toml",
    "vmm-integration/alioth/Cargo.toml",
];

/// What cargo-deny says of an exception that nothing needs.
const UNUSED: [&str; 3] =
    ["unmatched-skip", "unnecessary-skip", "license-exception-not-encountered"];

/// Options of `cargo xtask audit`.
#[derive(Args)]
pub(crate) struct Options {
    /// Leaves out known vulnerabilities, which need a network.
    #[arg(long)]
    without_advisories: bool,
}

/// Runs all checks.
///
/// # Errors
/// If one fails, or the database of vulnerabilities cannot be had.
pub(crate) fn run(options: &Options) -> Result<()> {
    let deny = CARGO_DENY.ensure()?;
    rules(&deny)?;
    if options.without_advisories {
        println!("known vulnerabilities: not checked, as asked for");
        return Ok(());
    }
    fetch(&deny).context("known vulnerabilities were not checked")?;
    advisories(&deny)
}

/// The same, but without known vulnerabilities where their database cannot be had.
///
/// # Errors
/// If a check fails.
pub(crate) fn for_tests() -> Result<()> {
    let deny = CARGO_DENY.ensure()?;
    rules(&deny)?;
    match fetch(&deny) {
        Ok(()) => advisories(&deny),
        Err(error) => {
            println!("KNOWN VULNERABILITIES WERE NOT CHECKED: {error:#}");
            Ok(())
        }
    }
}

/// Sources, licenses, bans and versions beside each other.
fn rules(deny: &Path) -> Result<()> {
    for (at, manifest) in WORKSPACES.iter().enumerate() {
        // Each exception must be needed where it was made for.
        let unused =
            UNUSED.iter().flat_map(|code| [if at == 0 { "--deny" } else { "--allow" }, code]);
        println!("{manifest}:");
        let mut check = cargo_deny(deny, manifest);
        check.args(["check", "--hide-inclusion-graph"]).args(unused);
        finish(check.args(["bans", "licenses", "sources"]))?;
    }
    Ok(())
}

/// Gets the database of vulnerabilities, or its changes.
fn fetch(deny: &Path) -> Result<()> {
    let output = cargo_deny(deny, WORKSPACES[0]).args(["fetch", "db"]).output();
    let output = output.context("cannot start cargo-deny")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    ensure!(
        output.status.success(),
        "their database cannot be fetched: {reason} (run `cargo xtask audit` with a network)"
    );
    Ok(())
}

fn advisories(deny: &Path) -> Result<()> {
    let mut failed = Vec::new();
    for manifest in WORKSPACES {
        println!("{manifest}:");
        if finish(cargo_deny(deny, manifest).args(["check", "advisories"])).is_err() {
            failed.push(manifest);
        }
    }
    if !failed.is_empty() {
        bail!("known vulnerabilities, or packages without a keeper, in {}", failed.join(", "));
    }
    Ok(())
}

/// cargo-deny on a workspace, with the rules of all of them.
fn cargo_deny(deny: &Path, manifest: &str) -> Command {
    let mut command = Command::new(deny);
    command.current_dir(root()).args(["--locked", "--workspace", "--manifest-path", manifest]);
    command.arg("--config").arg(root().join("deny.toml"));
    command
}
