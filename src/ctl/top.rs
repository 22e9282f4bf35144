// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl top`, which another program does.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::sibling::become_host;

/// Does `ctl top` if that is what the command line begins with: it needs no --control-socket, and has
/// the options and the help of the program that does it.
pub(crate) fn asked_for() -> Option<ExitCode> {
    let mut args = env::args_os().skip(1);
    let begins = args.by_ref().take(2).eq(["ctl", "top"].map(OsString::from));
    begins.then(|| become_host([OsString::from("top")].into_iter().chain(args)))
}

/// Does `ctl --control-socket PATH top`, with the options of `ctl` before those of `top`.
pub(super) fn of_one(socket: &Path, json: bool, args: &[OsString]) -> ExitCode {
    let mut all = vec!["top".into(), "--control-socket".into(), socket.into()];
    if json {
        all.push("--json".into());
    }
    become_host(all.into_iter().chain(args.iter().cloned()))
}
