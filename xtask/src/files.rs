// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files of the workspace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::root;

/// The files with this extension, sorted, without those that are hidden or built.
///
/// # Errors
/// If a folder cannot be listed.
pub(crate) fn with_extension(extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(&root(), extension, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if name.as_encoded_bytes().starts_with(b".") || name == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, extension, found)?;
        } else if path.extension().is_some_and(|has| has == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// The files of a working tree that Git knows or would add, without those that are gone.
///
/// # Errors
/// If Git cannot list them.
pub(crate) fn known_to_git(sources: &Path) -> Result<BTreeSet<PathBuf>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(list).current_dir(sources).output();
    let output = output.context("cannot start git, which lists the sources")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git cannot list the sources: {}", said.trim());
    let files = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let files = files.split_terminator('\0').map(PathBuf::from);
    Ok(files.filter(|file| sources.join(file).is_file()).collect())
}
