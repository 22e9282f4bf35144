// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `vhost-device-balloon-host` program.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command, ListArgs};
use crate::exit::Exit;
use crate::sockets::{self, Daemon};

/// Returns the command line's definition, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the command line of this process asks for; returns the exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error).into(),
    };
    match cli.command {
        Command::List(args) => runtime.block_on(list(args)).into(),
    }
}

/// `list`
async fn list(args: ListArgs) -> Exit {
    let found = match sockets::find(&args.places.dirs) {
        Ok(found) => found,
        Err(error) => return failed(&error),
    };
    let daemons = found.into_iter().map(Daemon::new).collect();
    let answers = sockets::each(daemons, |daemon| async move { daemon.status().await });
    let answers = answers.await;
    let mut out = io::stdout().lock();
    for (daemon, status) in answers {
        let name = match status {
            Ok(status) => daemon.name(&status),
            Err(error) => format!("({error})"),
        };
        if writeln!(out, "{}  {name}", daemon.path().display()).is_err() {
            return Exit::Failed;
        }
    }
    Exit::Done
}

/// Says why the program cannot go on.
fn failed(error: &dyn std::error::Error) -> Exit {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    // Without standard error only the exit status is left.
    let _ = writeln!(io::stderr(), "vhost-device-balloon-host: {text}");
    Exit::Failed
}
