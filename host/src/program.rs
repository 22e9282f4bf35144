// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `vhost-device-balloon-host` program.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::exit::Exit;
use crate::{hostd, log, status, top};

/// Returns the command line's definition, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the command line of this process asks for; returns the exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error(error);
            return Exit::Failed.into();
        }
    };
    let exit = match cli.command {
        Command::Hostd(args) => match runtime.block_on(hostd::run(args.into())) {
            Ok(()) => Exit::Done,
            Err(error) => {
                log::error(log::chain(&error));
                Exit::Failed
            }
        },
        Command::Status(args) => runtime.block_on(show(&args.socket, args.json)),
        Command::Top(args) => match runtime.block_on(top::run(args)) {
            Ok(()) => Exit::Done,
            Err(error) => {
                log::error(error);
                Exit::Failed
            }
        },
    };
    exit.into()
}

/// `status`
async fn show(socket: &Path, as_json: bool) -> Exit {
    match status::status(socket, as_json).await {
        Ok(text) if io::stdout().write_all(text.as_bytes()).is_ok() => Exit::Done,
        Ok(_) => Exit::Failed,
        Err(error) => {
            log::error(error);
            Exit::NoAnswer
        }
    }
}
