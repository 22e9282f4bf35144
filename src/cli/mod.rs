// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line: options with their help, checked into one [`Config`].

mod args;
mod config;
pub(crate) mod exit;
mod help;

pub(crate) use args::{Args, Command};
pub use config::{Config, ConfigError};
pub(crate) use config::{MAX_SOCKET_PATH, SocketSource};
