// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-device-balloon`: see `--help`.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use vhost_device_balloon::cli::{Args, CAPABILITIES, Command};
use vhost_device_balloon::logging::{Logger, error_chain};
use vhost_device_balloon::{Config, run};

fn main() -> ExitCode {
    // Whatever else the command line says.
    if env::args_os().any(|arg| arg == "--print-capabilities") {
        let printed = writeln!(io::stdout(), "{CAPABILITIES}");
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut args = Args::parse();
    if let Some(Command::Ctl(ctl)) = args.command.take() {
        return ctl.run();
    }
    let started = Config::try_from(args)
        .map_err(Box::<dyn Error>::from)
        .and_then(|config| Ok((Logger::start(config.log_level)?, config)));
    let (logger, config) = match started {
        Ok(started) => started,
        Err(error) => {
            // If that cannot be written, the exit status has to do.
            let _ = writeln!(io::stderr(), "{}", failure(error.as_ref()));
            return ExitCode::FAILURE;
        }
    };
    // Memory of the guest is mapped here: no core dump, and no other process of the same user, may
    // show it.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("cannot forbid core dumps of this process: {error}");
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logger.say(&failure(&error));
            ExitCode::FAILURE
        }
    }
}

/// What the process says when it fails.
fn failure(error: &dyn Error) -> String {
    format!("vhost-device-balloon: {}", error_chain(error))
}
