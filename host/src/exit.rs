// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The exit statuses of the program.

use std::process::ExitCode;

use clap::ValueEnum;

/// Exit statuses, with the numbers of the daemon's and of `ctl`. The help lists them with these
/// descriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[repr(u8)]
pub(crate) enum Exit {
    /// the request was done, or hostd received SIGTERM, SIGINT or SIGQUIT
    Done = 0,
    /// the program cannot start or go on
    Failed = 1,
    /// the command line is wrong
    Usage = 2,
    /// nothing answers
    NoAnswer = 3,
}

impl From<Exit> for ExitCode {
    fn from(status: Exit) -> Self {
        Self::from(status as u8)
    }
}

/// Returns all statuses with their descriptions, one a line.
pub(crate) fn list() -> String {
    let line = |status: &Exit| {
        let value = status.to_possible_value()?;
        Some(format!("  {}  {}\n", *status as u8, value.get_help()?))
    };
    Exit::value_variants().iter().filter_map(line).collect()
}
