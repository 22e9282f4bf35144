// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the sources were last changed: the same sources make the same packages.

use std::env;
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use jiff::Timestamp;

use crate::cargo::root;

/// The variable that says it to other programs (reproducible-builds.org).
pub(super) const VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// Seconds since 1970: what the environment says, or the last commit, or else the change of the changelog.
///
/// # Errors
/// If the variable holds no number, or there is no changelog.
pub(super) fn seconds() -> Result<i64> {
    if let Ok(text) = env::var(VARIABLE) {
        return text.parse().with_context(|| format!("{VARIABLE}={text}: expected seconds"));
    }
    let git = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()).output();
    let commit =
        git.ok().and_then(|output| String::from_utf8(output.stdout).ok()?.trim().parse().ok());
    if let Some(seconds) = commit {
        return Ok(seconds);
    }
    let changelog = root().join("CHANGELOG.md");
    let changed = changelog.metadata().and_then(|data| data.modified());
    let changed = changed.with_context(|| changelog.display().to_string())?;
    Ok(changed.duration_since(UNIX_EPOCH)?.as_secs().try_into()?)
}

/// The day, as YYYY-MM-DD.
///
/// # Errors
/// As [`seconds`], or if no calendar has that day.
pub(super) fn day() -> Result<String> {
    Ok(Timestamp::from_second(seconds()?)?.strftime("%Y-%m-%d").to_string())
}
