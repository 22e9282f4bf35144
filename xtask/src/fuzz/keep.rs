// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes the corpus in the repository small.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::build::Programs;
use crate::cargo::{root, target};

/// The most inputs of a target.
pub(crate) const MOST_INPUTS: usize = 40;
/// The most bytes of all inputs of a target.
pub(crate) const MOST_BYTES: u64 = 32 << 10;

/// Makes the corpus in the repository the smallest that reaches every edge that is reached, and of that
/// those of which each adds the most, as far as [`MOST_INPUTS`] and [`MOST_BYTES`] go.
///
/// # Errors
/// If the target cannot be run.
pub(super) fn keep(programs: &Programs, name: &str) -> Result<()> {
    let kept = root().join("fuzz/corpus").join(name);
    let found = target().join("fuzz/corpus").join(name);
    let (new, edges) = (empty("kept", name)?, empty("edges", name)?);
    // Edges alone: how often each was passed would keep thousands.
    let run = |more: &[&str], folders: &[&Path]| -> Result<()> {
        let mut command = Command::new(programs.path(name));
        command.args(["-use_counters=0", "-max_len=2048", "-timeout=20", "-rss_limit_mb=1024"]);
        command.args(more).args(folders).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
        ensure!(status.success(), "merging the corpus of {name} failed: {status}");
        Ok(())
    };
    run(&["-set_cover_merge=1"], &[&new, &kept, &found])?;
    run(&["-runs=0", &format!("-features_dir={}", edges.display())], &[&new])?;

    let mut inputs = Vec::new();
    for entry in fs::read_dir(&new)? {
        let entry = entry?;
        let adds = fs::metadata(edges.join(entry.file_name())).map_or(0, |edges| edges.len());
        inputs.push((Reverse(adds), entry.metadata()?.len(), entry.path()));
    }
    inputs.sort();
    fs::remove_dir_all(&kept)?;
    fs::create_dir_all(&kept)?;
    let (mut files, mut bytes) = (0, 0);
    for (_, len, path) in &inputs {
        if files < MOST_INPUTS && bytes + len <= MOST_BYTES {
            fs::copy(path, kept.join(path.file_name().context("an input")?))?;
            (files, bytes) = (files + 1, bytes + len);
        }
    }
    eprintln!("{name}: {files} of {} inputs, {bytes} bytes in {}", inputs.len(), kept.display());
    Ok(())
}

/// A folder with nothing in it.
fn empty(kind: &str, name: &str) -> Result<PathBuf> {
    let folder = target().join("fuzz").join(kind).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
