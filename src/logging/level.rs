// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The levels that an operator chooses from.

use clap::ValueEnum;
use log::LevelFilter;
use serde::{Deserialize, Serialize};

/// Levels of `--log-level`: those of the `log` crate without `trace`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Failures that keep the daemon from serving its guest.
    Error,
    /// Events that an operator should look into.
    Warn,
    /// Connections, a summary of each, and requests of operators.
    Info,
    /// Every report.
    Debug,
}

impl LogLevel {
    /// Returns the level in force.
    pub fn now() -> Self {
        match log::max_level() {
            LevelFilter::Off => Self::Off,
            LevelFilter::Error => Self::Error,
            LevelFilter::Warn => Self::Warn,
            LevelFilter::Info => Self::Info,
            LevelFilter::Debug | LevelFilter::Trace => Self::Debug,
        }
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}
