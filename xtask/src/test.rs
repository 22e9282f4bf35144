// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test`: everything that must hold.

use std::env;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use crate::capability::{self, WITHOUT};
use crate::cargo::{cargo, run};
use crate::mutants;

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
    let manifest = ["--manifest-path", "guest-driver/bare/Cargo.toml"];
    step("format of the bare guest", run(cargo(&["fmt", "--check"]).args(manifest)));

    heading("lints");
    let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("lints", run(&mut cargo(&lints)));
    let explored = ["clippy", "--locked", "--package", "explore", "--all-targets"];
    let deny = ["--features", "shuttle", "--", "--deny", "warnings"];
    step("lints of what is explored", run(cargo(&explored).args(deny)));

    let without_std = ["check", "--locked", "--package", "guest-driver", "--no-default-features"];
    step("guest-driver without std", run(&mut cargo(&without_std)));
    let bare = ["clippy", "--locked", "--target-dir", "target/bare"];
    let deny = ["--", "--deny", "warnings"];
    step("lints of the bare guest", run(cargo(&bare).args(manifest).args(deny)));
    let manifest = ["--manifest-path", "vmm-integration/alioth/Cargo.toml"];
    step("format of the VMM of alioth", run(cargo(&["fmt", "--check"]).args(manifest)));
    // As its program is built for the tests, so that they share what is built for the host.
    let lints = ["clippy", "--locked", "--release", "--target", "x86_64-unknown-linux-gnu"];
    let lints = [&lints[..], &["--target-dir", "target/guest/alioth"], &manifest, &deny].concat();
    step("lints of the VMM of alioth", run(&mut cargo(&lints)));

    heading("documentation");
    let doc = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    step("documentation", run(cargo(&doc).env("RUSTDOCFLAGS", "--deny warnings")));

    heading("what the tests need");
    let (missing, complaint) = missing_capabilities();
    step("what the tests need", complaint);

    heading("tests");
    step("tests", run_tests(&missing));

    heading("exploration");
    let explore = ["test", "--locked", "--profile", "explore", "--package", "explore"];
    let only = ["--features", "shuttle", "--test", "explore", "--test", "cost"];
    step("exploration", run(cargo(&explore).args(only)));

    heading("mutants");
    step("mutants", mutants::quick());

    let seconds = started.elapsed().as_secs();
    if !failed.is_empty() {
        bail!("failed after {seconds} s: {}", failed.join(", "));
    }
    println!("\nAll passed, {seconds} s.");
    Ok(())
}

/// The names of the capabilities that this machine does not have. With `CI` set the result is an
/// error if one is missing that [`WITHOUT`] does not name.
fn missing_capabilities() -> (Vec<&'static str>, Result<()>) {
    let expected = env::var(WITHOUT).unwrap_or_default();
    let mut missing = Vec::new();
    let mut unexpected = Vec::new();
    for capability in &capability::ALL {
        let name = capability.name;
        match (capability.probe)() {
            Ok(()) => println!("{name}: yes"),
            Err(error) => {
                println!("{name}: no: {error:#}");
                missing.push(name);
                if !expected.split(',').any(|without| without.trim() == name) {
                    unexpected.push(name);
                }
            }
        }
    }
    let complaint = if env::var_os("CI").is_some() && !unexpected.is_empty() {
        Err(anyhow!(
            "missing: {} (CI must have it, or name it in {WITHOUT})",
            unexpected.join(", ")
        ))
    } else {
        Ok(())
    };
    (missing, complaint)
}

/// Runs all tests but those that need what is missing.
fn run_tests(missing: &[&str]) -> Result<()> {
    let mut tests = cargo(&["test", "--locked", "--workspace", "--no-fail-fast", "--"]);
    tests.arg("--include-ignored");
    for test in capability::ignored_tests()? {
        if let Some(need) = test.needs.iter().find(|need| missing.contains(&need.as_str())) {
            println!("ignored: {} needs {need}", test.name);
            tests.args(["--skip", &test.name]);
        }
    }
    run(&mut tests)
}

fn heading(name: &str) {
    println!("\n=== {name}");
}
