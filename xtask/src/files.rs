// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files of the workspace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
