// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this process was started with: sockets of a service manager, and what the daemon before it
//! has left.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::error::Failure;
use super::socket::Listening;
use crate::hand_over::{Held, History, Store};
use crate::state::State;

/// See the module.
#[derive(Default)]
pub(super) struct Resumed {
    /// The store for the next daemon, if there is one.
    pub(super) held: Option<Arc<Held>>,
    /// There was a daemon before this one.
    pub(super) resumes: bool,
    /// Its frontend.
    pub(super) connection: Option<(UnixStream, History)>,
    /// A socket that listens for frontends.
    pub(super) frontend: Option<OwnedFd>,
    /// One that listens for control clients.
    pub(super) control: Option<OwnedFd>,
    /// One that listens for Prometheus.
    pub(super) metrics: Option<OwnedFd>,
}

impl Resumed {
    /// Keeps a socket that is listened on for the next daemon, and its file with it.
    pub(super) fn hold(&self, name: &str, mut listening: Listening) -> Listening {
        if let Some(held) = &self.held {
            held.keep_listener(name, &listening.listener);
            listening.file.hold(held);
        }
        listening
    }
}

/// The descriptors that a service manager has given this process, by name. Once, before anything is
/// opened: another time they would have two owners.
pub(super) fn inherited() -> BTreeMap<String, OwnedFd> {
    let fds = sd_notify::listen_fds_with_names();
    // SAFETY: LISTEN_PID names this process, so that they are its own, and nothing has taken them.
    let own = |(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) });
    fds.map(|fds| fds.map(own).collect()).unwrap_or_default()
}

/// Restores what the daemon before this one has left of the device, if there was one, and keeps it
/// for the next.
pub(super) fn open(
    state: &State,
    mut inherited: BTreeMap<String, OwnedFd>,
) -> Result<Resumed, Failure> {
    let [frontend, control, metrics] =
        ["frontend", "control", "metrics"].map(|name| inherited.remove(name));
    let mut resumed = Resumed { frontend, control, metrics, ..Resumed::default() };
    let Some(store) = Store::find() else { return Ok(resumed) };
    let (held, before) = Held::open(store, &mut inherited)?;
    let held = Arc::new(held);
    if let Some(before) = before {
        state.restore(&before.snapshot)?;
        resumed.resumes = true;
        resumed.connection = before.connection;
        state.set_resuming(resumed.connection.is_some());
    }
    state.hold(Arc::clone(&held));
    resumed.held = Some(held);
    Ok(resumed)
}
