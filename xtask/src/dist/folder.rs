// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where what is built is put.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo::target;

/// Returns a folder of `target/dist` without what was there.
///
/// # Errors
/// If it cannot be emptied or made.
pub(super) fn emptied(name: &str) -> Result<PathBuf> {
    let folder = target().join("dist").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
