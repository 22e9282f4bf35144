// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as packages have it.

use std::process::Command;

use super::about::NAME;
use crate::cargo::cargo;

/// Builds the release of the daemon, without the names of its symbols: packages have none.
pub(super) fn release() -> Command {
    let strip = ["--config", "profile.release.strip=\"symbols\""];
    let build = ["build", "--locked", "--release", "--package", NAME];
    cargo(&[&build[..], &strip].concat())
}
