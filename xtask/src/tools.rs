// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs that cargo builds, for commands that need them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cargo::{cargo, run, target};

/// A program from crates.io, in one version.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// Returns its path. Builds it into `target/tools` before the first time.
    ///
    /// # Errors
    /// If it cannot be built.
    pub(crate) fn ensure(&self) -> Result<PathBuf> {
        let Self { name, version } = self;
        let tools = target().join("tools");
        let program = tools.join("bin").join(name);
        let installed = Command::new(&program).arg("--version").output();
        let is_this = |said: &[u8]| {
            let said = String::from_utf8_lossy(said);
            said.split_whitespace().any(|word| word.trim_start_matches('v') == *version)
        };
        if !installed.is_ok_and(|output| is_this(&output.stdout)) {
            eprintln!("Building {name} {version} into {}: some minutes, once.", tools.display());
            let install = ["install", "--locked", "--version", version, "--root"];
            run(cargo(&install).arg(&tools).args(["--no-default-features", "--force", name]))?;
        }
        Ok(program)
    }
}
