// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every fuzz target has a corpus in the repository, and each is small.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::cargo::root;
use crate::fuzz::{MOST_BYTES, MOST_INPUTS, targets};

/// # Errors
/// If a target has no corpus, or one that is too large, or there is a corpus without a target.
pub(super) fn check() -> Result<()> {
    let folder = root().join("fuzz/corpus");
    let names = targets()?;
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(names.contains(&name), "fuzz/corpus/{name} belongs to no target");
    }
    for name in &names {
        let mut inputs = Vec::new();
        for input in fs::read_dir(folder.join(name)).with_context(|| format!("corpus of {name}"))? {
            inputs.push(input?.metadata()?.len());
        }
        let (files, bytes) = (inputs.len(), inputs.iter().sum::<u64>());
        ensure!(
            (1..=MOST_INPUTS).contains(&files) && bytes <= MOST_BYTES,
            "the corpus of {name} has {files} inputs of {bytes} bytes, expected 1 to {MOST_INPUTS} \
             of at most {MOST_BYTES} bytes: cargo xtask fuzz {name} --keep"
        );
    }
    Ok(())
}
