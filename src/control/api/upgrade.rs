// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has the program that is at this one's path by now go on with the VM.
//!
//! It is asked first whether it could. What it says no to, or what does not answer, changes nothing.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};
use serde::Serialize;

use super::context::{Answer, Context};
use crate::control::http::Response;
use crate::control::peer::Peer;
use crate::control::reply::{Later, Reply};
use crate::hand_over::{CHECK, Held};
use crate::lock::lock;
use crate::state::State;

/// How long the other program may take to say whether it could go on.
const CHECKED_WITHIN: Duration = Duration::from_secs(2);
/// Less than `ctl` waits for an answer.
const MOST_WAIT: Duration = Duration::from_secs(3);
/// As much of what it says is repeated.
const MOST_SAID: u64 = 500;

/// An upgrade that is in progress.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct UpgradeView {
    /// ID of the process that hands over.
    pid: i32,
    /// Path of the program that goes on.
    program: PathBuf,
}

/// `POST /v1/upgrade`
pub(super) fn upgrade(context: &Context<'_>) -> Answer {
    let state = context.state;
    let Some(held) = state.held() else {
        let why = "nothing would start the next daemon: start this one with --keeper, or by systemd \
                   with FileDescriptorStoreMax=";
        return Err(Response::error(409, why));
    };
    let failed = |error: io::Error| Response::error(500, format!("cannot upgrade: {error}"));
    let program = program().map_err(failed)?;
    let record = held.record().map_err(failed)?;
    let checked = Arc::new(Mutex::new(None));
    let (tells, operators, path) =
        (Arc::clone(&checked), Arc::clone(&state.operators), program.clone());
    let check = move || {
        *lock(&tells) = Some(check(&path, record));
        operators.signal();
    };
    thread::Builder::new().name("upgrade".to_owned()).spawn(check).map_err(failed)?;
    let (looked, peer) = (Arc::clone(&checked), context.peer);
    let later = Later::new(
        Instant::now() + MOST_WAIT,
        move |_| lock(&looked).is_some(),
        move |state, _| match lock(&checked).take() {
            Some(Ok(())) => hand_over(state, program, peer),
            Some(Err(why)) => Response::error(409, format!("{}: {why}", program.display())),
            None => Response::error(409, format!("{} does not answer", program.display())),
        },
    );
    Ok(Reply::Later(later))
}

/// The path of this program, whatever is there now.
fn program() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    let name = path.as_os_str().as_bytes();
    // The kernel says so of a file that was replaced.
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Ok(OsString::from(OsStr::from_bytes(name)).into())
}

/// Asks `program` whether it could go on from this record.
fn check(program: &Path, record: OwnedFd) -> Result<(), String> {
    let mut child = Command::new(program)
        .arg(CHECK)
        .stdin(record)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let ended = ends(&child).unwrap_or(false);
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take().filter(|_| ended) {
        let _ = stderr.take(MOST_SAID).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    Err(format!("cannot go on with this VM ({status}) {}", said.trim()).trim().to_owned())
}

/// Waits for the end of `child`; says whether it came in time.
fn ends(child: &Child) -> io::Result<bool> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let timeout = Timespec::try_from(CHECKED_WITHIN).ok();
    Ok(poll(&mut [PollFd::new(&ended, PollFlags::IN)], timeout.as_ref())? > 0)
}

fn hand_over(state: &State, program: PathBuf, peer: Peer) -> Response {
    if let Some(Err(error)) = state.held().map(Held::upgrade) {
        return Response::error(409, format!("nothing starts the next daemon any more: {error}"));
    }
    info!("upgrade: {} goes on with the VM, by {peer}", program.display());
    // The answer is written before the main thread sees the end.
    if let Err(error) = kill_process(getpid(), Signal::TERM) {
        warn!("cannot end this daemon: {error}");
    }
    Response::json(&UpgradeView { pid: getpid().as_raw_pid(), program })
}
