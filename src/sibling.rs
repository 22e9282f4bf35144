// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program of a whole host, which is not part of this one so that a daemon stays small: this process
//! becomes it.

use std::env;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Its name.
const NAME: &str = "vhost-device-balloon-host";

/// Becomes the host's program with these arguments: the one beside this program, or else the first in
/// `PATH`. Returns only if there is none that runs.
pub(crate) fn become_host(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let beside = env::current_exe().ok().map(|path| path.with_file_name(NAME));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(NAME));
    let error = Command::new(&program).args(args).exec();
    let _ = writeln!(io::stderr(), "vhost-device-balloon: {}", reason(&error));
    ExitCode::FAILURE
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => {
            format!("{NAME} is not installed: expected it beside this program, or in PATH")
        }
        _ => format!("cannot run {NAME}: {error}"),
    }
}
