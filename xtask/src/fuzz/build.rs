// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds the targets with what libFuzzer needs of the compiler. These are the flags of cargo-fuzz; the
//! stable compiler takes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::cargo::{cargo, root, run, target};

/// `--cfg fuzzing` opens the daemon's door for the targets.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What a program checks of its own accesses to memory.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sanitizer {
    None,
    Address,
}

/// The built targets.
pub(super) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// # Errors
    /// If one does not build.
    pub(super) fn build(sanitizer: Sanitizer, targets: &[String]) -> Result<Self> {
        let build = target().join(match sanitizer {
            Sanitizer::None => "fuzz",
            Sanitizer::Address => "fuzz-address",
        });
        Self::build_of(&root(), &build, sanitizer, targets)
    }

    /// The same of the sources in `tree`, in the folder `build`.
    ///
    /// # Errors
    /// If one does not build.
    pub(super) fn build_of(
        tree: &Path,
        build: &Path,
        sanitizer: Sanitizer,
        targets: &[String],
    ) -> Result<Self> {
        let host = host()?;
        let args = ["build", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml"];
        let mut command = cargo(&args);
        // With a target, so that build scripts and procedural macros have none of the flags.
        command.args(["--target", &host, "--target-dir"]).arg(build).current_dir(tree);
        command.args(targets.iter().flat_map(|target| ["--bin", target]));
        let mut flags = FLAGS.to_vec();
        if sanitizer == Sanitizer::Address {
            flags.push("-Zsanitizer=address");
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", flags.join(" "));
        run(&mut command)?;
        Ok(Self { folder: build.join(host).join("release") })
    }

    pub(super) fn path(&self, target: &str) -> PathBuf {
        self.folder.join(target)
    }
}

/// The triple of this machine.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc -vV")?;
    ensure!(output.status.success(), "rustc -vV failed: {}", output.status);
    let said = String::from_utf8(output.stdout)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
