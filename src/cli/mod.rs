// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line, as one checked [`Config`].

mod args;

pub(crate) use args::MAX_SOCKET_PATH;
pub use args::{Args, CAPABILITIES, Command, Config, ConfigError, SocketSource};
