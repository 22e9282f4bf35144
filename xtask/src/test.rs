// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test`: everything that must hold.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::cargo::{cargo, run};
use crate::setup;

/// Runs the checks one after the other and goes on past a failure, so that one run shows them all.
///
/// # Errors
/// If any of them failed.
pub(crate) fn all() -> Result<()> {
    let started = Instant::now();
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("\n{name}: {error:#}");
            failed.push(name);
        }
    };

    heading("format");
    step("format", run(&mut cargo(&["fmt", "--all", "--check"])));

    heading("lints");
    let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("lints", run(&mut cargo(&lints)));
    let explored = ["clippy", "--locked", "--package", "explore", "--all-targets"];
    let deny = ["--features", "shuttle", "--", "--deny", "warnings"];
    step("lints of what is explored", run(cargo(&explored).args(deny)));

    let bare = ["check", "--locked", "--package", "guest-driver", "--no-default-features"];
    step("guest-driver without std", run(&mut cargo(&bare)));

    heading("documentation");
    let doc = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    step("documentation", run(cargo(&doc).env("RUSTDOCFLAGS", "--deny warnings")));

    // Done here so that its progress shows; a test that finds it missing would do it in silence.
    heading("a real guest");
    if let Err(error) = setup::guest() {
        eprintln!("{error:#}");
        eprintln!("The tests with a real guest will say that they did not run.");
    }

    heading("tests");
    step("tests", run(&mut cargo(&["test", "--locked", "--workspace", "--no-fail-fast"])));

    heading("exploration");
    let explore = ["test", "--locked", "--profile", "explore", "--package", "explore"];
    let only = ["--features", "shuttle", "--test", "explore"];
    step("exploration", run(cargo(&explore).args(only)));

    let seconds = started.elapsed().as_secs();
    if !failed.is_empty() {
        bail!("failed after {seconds} s: {}", failed.join(", "));
    }
    println!("\nAll passed, {seconds} s.");
    Ok(())
}

fn heading(name: &str) {
    println!("\n=== {name}");
}
