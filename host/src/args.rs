// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::exit;
use crate::sockets::DEFAULT_DIR;

/// Watches and steers all balloon daemons of this host.
///
/// Each VM has a daemon of its own (vhost-device-balloon). This program finds their control sockets
/// and asks them as `vhost-device-balloon ctl` does. A daemon never needs it: without this program
/// every VM keeps the memory that its own target leaves it.
#[derive(Debug, Parser)]
#[command(version, after_long_help = after(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the daemons of this host.
    List(ListArgs),
}

/// Options of `list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) places: Places,
}

/// Where the daemons are.
#[derive(Clone, Debug, Args)]
pub(crate) struct Places {
    /// Directory with control sockets, files named VM.ctl. May be given more than once.
    ///
    /// Sockets that come and go are noticed at once, and so is a directory that does not exist yet.
    #[arg(long = "sockets", value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    #[arg(default_value = DEFAULT_DIR)]
    pub(crate) dirs: Vec<PathBuf>,
}

fn after() -> String {
    format!("Exit status:\n{}", exit::list())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
