// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon as a child process, with what the one before it has left.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::AtFlags;
use nix::unistd::{ForkResult, execveat, fork};
use rustix::process::Pid;

use super::notices::MOST_KEPT;
use crate::hand_over::WENT_BACK;

/// The first descriptor that a program is given (`sd_listen_fds(3)`).
const FIRST: RawFd = 3;
/// What the parent has in its environment for itself.
const OWN: [&str; 6] =
    ["NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", WENT_BACK];

/// Starts `program` with these arguments and descriptors. The process must have one thread.
///
/// # Errors
/// What the kernel says. A program that cannot be executed ends with status 127.
pub(super) fn start(
    program: BorrowedFd<'_>,
    args: &[OsString],
    notify: &str,
    kept: &BTreeMap<String, OwnedFd>,
    went_back: bool,
) -> io::Result<Pid> {
    let args: Vec<CString> =
        args.iter().filter_map(|arg| CString::new(arg.as_bytes()).ok()).collect();
    let names: Vec<&str> = kept.keys().map(String::as_str).collect();
    let own = |name: &OsStr| OWN.iter().any(|other| name == *other);
    let mut environment: Vec<OsString> = env::vars_os()
        .filter(|(name, _)| !own(name))
        .map(|(name, value)| {
            let mut line = name;
            line.push("=");
            line.push(value);
            line
        })
        .collect();
    environment.push(format!("NOTIFY_SOCKET={notify}").into());
    environment.push(format!("FDSTORE={MOST_KEPT}").into());
    environment.push(format!("LISTEN_FDS={}", kept.len()).into());
    // An empty list would be the list of one empty name.
    if !names.is_empty() {
        environment.push(format!("LISTEN_FDNAMES={}", names.join(":")).into());
    }
    if went_back {
        environment.push(format!("{WENT_BACK}=1").into());
    }
    // Out of the way of those that the program is given.
    let high = FIRST + RawFd::try_from(MOST_KEPT).unwrap_or(RawFd::MAX);
    let move_up =
        |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, high).map_err(io::Error::from);
    let program = move_up(program)?;
    let fds = kept.values().map(|fd| move_up(fd.as_fd())).collect::<io::Result<Vec<_>>>()?;
    // SAFETY: this process has one thread, so that the child may do whatever it could have done.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            Ok(Pid::from_raw(child.as_raw()).ok_or(io::ErrorKind::NotFound)?)
        }
        ForkResult::Child => {
            become_it(&program, &args, environment, &fds);
            // SAFETY: ends the child, in which nothing must be cleaned up.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Executes the program; returns if that fails.
fn become_it(program: &OwnedFd, args: &[CString], environment: Vec<OsString>, fds: &[OwnedFd]) {
    for (target, fd) in (FIRST..).zip(fds) {
        // SAFETY: two numbers. What was open under the target belongs to the parent's copy.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return;
        }
        // SAFETY: it was just made. Given up again: it stays open over the execution.
        std::mem::forget(unsafe { OwnedFd::from_raw_fd(target) });
    }
    // The signals that the parent takes stay blocked: the daemon takes them as soon as it can.
    let pid = OsString::from(format!("LISTEN_PID={}", std::process::id()));
    let lines = environment.into_iter().chain([pid]);
    let lines: Vec<CString> = lines.filter_map(|line| CString::new(line.into_vec()).ok()).collect();
    let _ = execveat(program, c"", args, &lines, AtFlags::AT_EMPTY_PATH);
}
