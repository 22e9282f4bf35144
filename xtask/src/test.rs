// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test`: everything that must hold.

use std::env;
use std::process::Command;
use std::thread;

use anyhow::{Result, anyhow};
use clap::Args;
use vmm_integration::debian;

use crate::audit;
use crate::capability::{self, WITHOUT};
use crate::cargo::{cargo, run};
use crate::dist;
use crate::fuzz;
use crate::mutants;
use crate::setup;
use crate::steps::Steps;

/// Where the copies of the sources with a mutant are built. What is explored is built there, too: both
/// depend on the same packages.
const EXPLORED: &str = "target/mutants/build";
/// Set for the tests of a full run.
const FULL: &str = "TEST_FULL";
/// Cycles of the race of memory hotplug in CI, in place of the test's own number.
const RACE: (&str, &str) = ("RACE_CYCLES", "500");
/// What only a full run needs: to fetch a browser and load the report's page takes two minutes, to build alioth
/// and boot its guests three, and a systemd that is not that of the machine hangs once in some forty runs in a
/// container.
const FULL_ONLY: [&str; 4] =
    ["a browser", "a bare guest on KVM", "a systemd of its own", capability::FULL_RUN];

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Runs what CI leaves out: the report in a browser, every mutant, longer searches, and a minute of
    /// fuzzing a target.
    ///
    /// The exploration searches 2000 schedules of each configuration instead of 250, and ten times
    /// as many of the exhaustive search; the race of memory hotplug goes on for 5000 cycles instead
    /// of 500.
    #[arg(long)]
    full: bool,
}

/// Runs the checks one after the other and goes on past a failure, so that one run shows them all.
/// Prints the seconds of each in the end.
///
/// # Errors
/// If any of them failed.
pub(crate) fn all(options: &Options) -> Result<()> {
    let mut steps = Steps::start();
    let ahead = thread::spawn(fetch_ahead);
    formats(&mut steps);
    lints(&mut steps, options.full);
    steps.run("documentation", || {
        let doc = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
        run(cargo(&doc).env("RUSTDOCFLAGS", "--deny warnings"))
    });

    let mut missing = Vec::new();
    steps.run("what the tests need", || {
        // It prints nothing but progress, and fails again where that is said.
        let _ = ahead.join();
        let complaint;
        (missing, complaint) = missing_capabilities(options.full);
        complaint
    });
    steps.run("build of the tests", || run(&mut tests(&["--no-run"])));
    // One of the tests installs it.
    steps.run("package of the tests", dist::check_for_tests);
    steps.run("tests", || run_tests(&missing, options.full));
    if options.full {
        steps.run("packages", packages);
        steps.run("what everything is built of", audit::for_tests);
    }
    steps.run("fuzzing", || fuzz::for_tests(options.full));
    steps.run("exploration", || {
        let only = ["--test", "explore", "--test", "cost"];
        let mut explore = explored("test");
        if options.full {
            explore.env(FULL, "1");
        }
        run(explore.args(only))
    });
    steps.run("mutants", || mutants::for_tests(options.full));
    steps.finish()
}

/// Fetches the largest parts of the guests, for which the network is waited for, while others compile.
fn fetch_ahead() {
    let _ = setup::guest();
    let _ = debian::installation(&mut |_| {});
}

fn formats(steps: &mut Steps) {
    let format = ["fmt", "--check"];
    steps.run("formats", || {
        run(cargo(&format).arg("--all"))?;
        run(&mut cargo(&[&format[..], &BARE].concat()))?;
        run(&mut cargo(&[&format[..], &ALIOTH].concat()))?;
        run(&mut cargo(&[&format[..], &FUZZ].concat()))
    });
}

const BARE: [&str; 2] = ["--manifest-path", "guest-driver/bare/Cargo.toml"];
const FUZZ: [&str; 2] = ["--manifest-path", "fuzz/Cargo.toml"];
const ALIOTH: [&str; 2] = ["--manifest-path", "vmm-integration/alioth/Cargo.toml"];

fn lints(steps: &mut Steps, full: bool) {
    let deny = ["--", "--deny", "warnings"];
    steps.run("lints", || {
        run(cargo(&["clippy", "--locked", "--workspace", "--all-targets"]).args(deny))
    });
    steps.run("lints of what is explored", || {
        run(explored("clippy").arg("--all-targets").args(deny))
    });
    steps.run("guest-driver without std", || {
        run(&mut cargo(&[
            "check",
            "--locked",
            "--package",
            "guest-driver",
            "--no-default-features",
        ]))
    });
    steps.run("lints of the bare guest", || {
        let bare = ["clippy", "--locked", "--target-dir", "target/bare"];
        run(cargo(&bare).args(BARE).args(deny))
    });
    if !full {
        return;
    }
    steps.run("lints of the VMM of alioth", || {
        // As its program is built for the tests, so that they share what is built for the host.
        let lints = ["clippy", "--locked", "--release", "--target", "x86_64-unknown-linux-gnu"];
        let lints = [&lints[..], &["--target-dir", "target/guest/alioth"], &ALIOTH, &deny];
        run(&mut cargo(&lints.concat()))
    });
    if full {
        steps.run("lints of the fuzz targets", || {
            let lints = ["clippy", "--locked", "--target-dir", "target/fuzz-lints"];
            let mut lints = cargo(&[&lints[..], &FUZZ, &deny].concat());
            run(lints.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "--cfg=fuzzing"))
        });
    }
}

/// All packages as they are released. The rest of a run is built without what writes a .rpm.
fn packages() -> Result<()> {
    let with = ["--locked", "--package", "xtask", "--features", "packages"];
    run(cargo(&[&["clippy"], &with[..]].concat()).args([
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    run(cargo(&[&["test"], &with[..]].concat()).arg("dist::"))?;
    run(cargo(&[&["run"], &with[..]].concat()).args(["--", "dist", "--check"]))?;
    run(cargo(&[&["run"], &with[..]].concat()).args(["--", "dist", "--static", "--check"]))?;
    run(cargo(&[&["run"], &with[..]].concat()).args(["--", "dist", "--check-reproducible"]))
}

/// A command of cargo on what is explored, built once for all such commands.
fn explored(command: &str) -> Command {
    let of = ["--locked", "--profile", "explore", "--package", "explore", "--features", "shuttle"];
    cargo(&[&[command], &of[..], &["--target-dir", EXPLORED]].concat())
}
/// The names of the capabilities that this machine does not have. With `CI` set the result is an
/// error if one is missing that [`WITHOUT`] does not name.
fn missing_capabilities(full: bool) -> (Vec<&'static str>, Result<()>) {
    let expected = env::var(WITHOUT).unwrap_or_default();
    let mut missing = Vec::new();
    let mut unexpected = Vec::new();
    for capability in &capability::ALL {
        let name = capability.name;
        if FULL_ONLY.contains(&name) && !full {
            println!("{name}: not now: cargo xtask test --full");
            missing.push(name);
            continue;
        }
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
fn run_tests(missing: &[&str], full: bool) -> Result<()> {
    let mut tests = tests(&["--", "--include-ignored"]);
    if full {
        tests.env(FULL, "1");
    } else if env::var_os(RACE.0).is_none() {
        tests.env(RACE.0, RACE.1);
    }
    for test in capability::ignored_tests()? {
        if let Some(need) = test.needs.iter().find(|need| missing.contains(&need.as_str())) {
            println!("ignored: {} needs {need}", test.name);
            tests.args(["--skip", &test.name]);
        }
    }
    run(&mut tests)
}

/// A command on all tests of the workspace.
fn tests(args: &[&str]) -> Command {
    let all = ["test", "--locked", "--workspace", "--no-fail-fast"];
    cargo(&[&all[..], args].concat())
}
