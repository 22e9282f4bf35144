// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has the program that is at this one's path by now go on with the VM.
//!
//! The keeper asks it first whether it could, since the daemon itself starts no program. What it says no
//! to, or what does not answer, changes nothing. A service manager asks nothing: there the client says
//! which state its own program takes.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use super::context::{Answer, Context};
use crate::control::http::Response;
use crate::control::peer::Peer;
use crate::control::reply::{Later, Reply};
use crate::hand_over::{Held, VERSION};
use crate::lock::lock;
use crate::own_proc::own_proc;
use crate::state::State;

/// How long the answer of the keeper may take, which ends a program that does not answer.
const ANSWERED_WITHIN: Duration = Duration::from_millis(2500);
/// Less than `ctl` waits for an answer.
const MOST_WAIT: Duration = Duration::from_secs(3);
/// As much of what it says is repeated.
const MOST_SAID: usize = 600;

/// What the client knows of the program.
#[derive(Clone, Copy, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct UpgradeRequest {
    /// Version number of the device's state that the client's own program takes; looked at where nothing
    /// asks the program itself, as under systemd.
    state_version: u32,
}

/// An upgrade that is in progress.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct UpgradeView {
    /// ID of the process that hands over.
    pid: i32,
    /// Path of the program that goes on.
    program: String,
}

/// `POST /v1/upgrade`
pub(super) fn upgrade(context: &Context<'_>) -> Answer {
    let state = context.state;
    let Some(held) = state.held() else {
        let why = "nothing would start the next daemon: start this one with --keeper, or by systemd \
                   with FileDescriptorStoreMax=";
        return Err(Response::error(409, why));
    };
    let request = match context.request.body {
        [] => None,
        _ => Some(context.body::<UpgradeRequest>(r#"{"state_version": 1}"#)?),
    };
    let failed = |error| Response::error(500, format!("cannot upgrade: {error}"));
    let program = own_proc().program();
    let program = program.map_or("the program".to_owned(), |path| path.display().to_string());
    let answer = held.ask_program().map_err(|error| Response::error(409, gone(&error)))?;
    let asked = Arc::new(Mutex::new(None));
    let (tells, operators) = (Arc::clone(&asked), Arc::clone(&state.operators));
    let wait = move || {
        *lock(&tells) = Some(answered(answer, request));
        operators.signal();
    };
    thread::Builder::new().name("upgrade".to_owned()).spawn(wait).map_err(failed)?;
    let (looked, peer) = (Arc::clone(&asked), context.peer);
    let later = Later::new(
        Instant::now() + MOST_WAIT,
        move |_| lock(&looked).is_some(),
        move |state, _| match lock(&asked).take() {
            Some(Ok(())) => hand_over(state, program, peer),
            Some(Err(why)) => Response::error(409, format!("{program}: {why}")),
            None => Response::error(409, format!("{program} does not answer")),
        },
    );
    Ok(Reply::Later(later))
}

/// Waits for what the keeper says of the program: nothing where there is no keeper.
fn answered(mut from: File, request: Option<UpgradeRequest>) -> Result<(), String> {
    let until = Instant::now() + ANSWERED_WITHIN;
    let mut said = Vec::new();
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&from, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Err("does not answer".to_owned()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        let mut some = [0; 512];
        match from.read(&mut some) {
            Ok(0) => break,
            Ok(count) if said.len() < MOST_SAID => said.extend_from_slice(&some[..count]),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    match String::from_utf8_lossy(&said).trim() {
        "yes" => Ok(()),
        "" => match request {
            Some(UpgradeRequest { state_version }) if state_version != VERSION => Err(format!(
                "cannot go on with this VM: it takes a state of version {state_version}, and this \
                 daemon's has version {VERSION}"
            )),
            _ => Ok(()),
        },
        no => Err(no.to_owned()),
    }
}

fn gone(error: &io::Error) -> String {
    format!("nothing starts the next daemon any more: {error}")
}

fn hand_over(state: &State, program: String, peer: Peer) -> Response {
    if let Some(Err(error)) = state.held().map(Held::upgrade) {
        return Response::error(409, gone(&error));
    }
    info!("upgrade: {program} goes on with the VM, by {peer}");
    // The answer is written before the main thread sees the end.
    if let Err(error) = kill_process(getpid(), Signal::TERM) {
        warn!("cannot end this daemon: {error}");
    }
    Response::json(&UpgradeView { pid: getpid().as_raw_pid(), program })
}
