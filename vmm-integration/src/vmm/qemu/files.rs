// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files of one guest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// How much of a log goes into an error.
const TAIL_LINES: usize = 30;

/// The files of one guest, in a folder that goes with it.
pub(super) struct Files {
    pub(super) folder: TempDir,
}

impl Files {
    pub(super) fn new() -> Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("linux-guest-").tempdir().context("a temp folder")?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn serial(&self) -> PathBuf {
        self.path("serial.log")
    }

    pub(super) fn stderr(&self) -> PathBuf {
        self.path("stderr.log")
    }

    pub(super) fn trace(&self) -> PathBuf {
        self.path("trace.log")
    }

    /// Both logs' ends, for an error.
    pub(super) fn tails(&self) -> String {
        let tail = |path: &Path| {
            let text = read_lossy(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        };
        format!(
            "QEMU's messages:\n{}\nend of the serial console:\n{}",
            tail(&self.stderr()),
            tail(&self.serial())
        )
    }
}

pub(super) fn read_lossy(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
