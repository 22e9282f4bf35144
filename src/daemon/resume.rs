// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this process was started with: sockets of a service manager, and what the daemon before it
//! has left.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use super::error::Failure;
use super::process::Owner;
use super::service::{OWN_SOCKETS, SOCKETS};
use super::socket::{self, Access, Listening, SocketError};
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
    /// A socket that listens for Prometheus.
    pub(super) metrics: Option<OwnedFd>,
    /// Sockets that listen for frontends and for control clients, of the daemon before this one.
    own: [Option<OwnedFd>; 2],
    /// The same, of the service manager.
    passed: [Option<OwnedFd>; 2],
}

/// One of the two sockets that are listened on: the index of its names.
#[derive(Clone, Copy)]
pub(super) enum Which {
    Frontend = 0,
    Control = 1,
}

impl Resumed {
    /// Listens: on the service manager's socket, on that of the daemon before this one, or at `path`.
    /// One that is not the service manager's is kept for the next daemon, and its file with it.
    pub(super) fn listen(
        &mut self,
        which: Which,
        path: &Path,
        access: Access,
    ) -> Result<Listening, SocketError> {
        let index = which as usize;
        if let Some(passed) = self.passed[index].take() {
            return socket::listen_for_manager(passed, path);
        }
        let mut listening = match self.own[index].take() {
            Some(listener) => socket::listen_on(listener, path, access)?,
            None => socket::listen(path, access)?,
        };
        if let (Some(held), Some(file)) = (&self.held, &mut listening.file) {
            held.keep_listener(OWN_SOCKETS[index], &listening.listener);
            file.hold(held);
        }
        Ok(listening)
    }
}

/// Restores what the daemon before this one has left of the device, if there was one, and keeps it
/// for the next.
pub(super) fn open(
    state: &State,
    owner: Owner,
    mut inherited: BTreeMap<String, OwnedFd>,
) -> Result<Resumed, Failure> {
    let own = OWN_SOCKETS.map(|name| inherited.remove(name));
    let passed = SOCKETS.map(|name| inherited.remove(name));
    let metrics = inherited.remove("metrics");
    let mut resumed = Resumed { own, passed, metrics, ..Resumed::default() };
    let store = if owner == Owner::Program { Store::find() } else { None };
    let Some(store) = store else { return Ok(resumed) };
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
