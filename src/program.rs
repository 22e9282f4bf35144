// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `vhost-device-balloon` program: the daemon, its client `ctl`, and what packages derive from
//! the command line.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::cli::exit::DaemonExit;
use crate::cli::{Args, Command, Config};
use crate::ctl;
use crate::daemon;
use crate::logging::{Logger, error_chain};
use crate::sibling::become_host;
use crate::{hand_over, keeper};

/// The output of `--print-capabilities`: a `VHostUserBackendCapabilities` of QEMU's
/// `vhost-user.json`.
pub const CAPABILITIES: &str = r#"{"type": "balloon"}"#;

/// Returns the command line's definition, for completions and man pages.
pub fn command() -> clap::Command {
    Args::command()
}

/// Does what the command line of this process asks for; returns the exit status.
pub fn main() -> ExitCode {
    // Takes precedence over everything else on the command line.
    if env::args_os().any(|arg| arg == "--print-capabilities") {
        let printed = writeln!(io::stdout(), "{CAPABILITIES}");
        let status = if printed.is_ok() { DaemonExit::Done } else { DaemonExit::Failed };
        return status.into();
    }
    if env::args_os().any(|arg| arg == hand_over::CHECK) {
        return check_hand_over();
    }
    if let Some(status) = ctl::top::asked_for() {
        return status;
    }
    let mut args = Args::parse();
    match args.command.take() {
        Some(Command::Ctl(ctl)) => return ctl.run(),
        Some(Command::Hostd { args }) => {
            return become_host([OsString::from("hostd")].into_iter().chain(args));
        }
        None => {}
    }
    if args.keeper {
        // Refused here, and not by each daemon.
        return match Config::try_from(args) {
            Ok(config) => {
                let sockets = config.socket_paths().map(Path::to_owned).collect();
                keeper::run(env::args_os().filter(|arg| arg != "--keeper").collect(), sockets)
            }
            Err(error) => {
                let _ = writeln!(io::stderr(), "{}", failure(&error));
                DaemonExit::Failed.into()
            }
        };
    }
    let started = Config::try_from(args)
        .map_err(Box::<dyn Error>::from)
        .and_then(|config| Ok((Logger::new(config.log_level)?, config)));
    let (logger, config) = match started {
        Ok(started) => started,
        Err(error) => {
            // Without standard error only the exit status is left.
            let _ = writeln!(io::stderr(), "{}", failure(error.as_ref()));
            return DaemonExit::Failed.into();
        }
    };
    // The daemon maps guest memory: no core dump, and no other process of the same user, may show it.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("cannot forbid core dumps of this process: {error}");
    }
    match daemon::run(&config, &logger) {
        Ok(false) => DaemonExit::Done.into(),
        Ok(true) => DaemonExit::HandedOver.into(),
        Err(error) => {
            logger.say(&failure(&error));
            DaemonExit::Failed.into()
        }
    }
}

/// Says whether this program could go on from the record that is its standard input.
fn check_hand_over() -> ExitCode {
    let record = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let checked = record.map_err(Box::<dyn Error>::from).and_then(|record| {
        hand_over::check(record)?;
        Ok(())
    });
    match checked {
        Ok(()) => DaemonExit::Done.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", failure(error.as_ref()));
            DaemonExit::Failed.into()
        }
    }
}

/// Returns the line that the process prints when it fails.
fn failure(error: &dyn Error) -> String {
    format!("vhost-device-balloon: {}", error_chain(error))
}
