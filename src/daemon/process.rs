// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What belongs to a process as a whole: signals, limits, what a service manager passes. The program
//! sets them up; a daemon inside another program changes none of them.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;

use log::warn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::{Failure, resources};
use super::socket::{self, Frontends, SocketError};
use super::{service, sigbus, signals};
use crate::cli::{Config, SocketSource};
use crate::hand_over::reach_manager;
use crate::logging::Logger;
use crate::own_proc::own_proc;

/// Whose the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The daemon's: it takes signals, and a service manager may have started it.
    Program,
    /// Another program's.
    Embedder,
}

impl Owner {
    /// Tells the service manager of the program.
    pub(super) fn notify(self, states: &[&str]) {
        if self == Self::Program {
            service::notify(states);
        }
    }
}

/// Where the socket for frontends comes from.
#[derive(Debug)]
pub(super) enum Place {
    /// It was inherited.
    Socket(Frontends),
    /// The daemon makes it there.
    Path(PathBuf),
}

impl Place {
    /// Takes over the socket of `--fd`. First of all, while every number is whose the caller says it
    /// is.
    pub(super) fn take(config: &Config) -> Result<Self, SocketError> {
        match &config.socket {
            SocketSource::Fd(fd) => Ok(Self::Socket(socket::adopt(*fd)?)),
            SocketSource::Path(path) => Ok(Self::Path(path.clone())),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Process<'a> {
    pub(super) owner: Owner,
    /// The log that is the daemon's.
    pub(super) logger: Option<&'a Logger>,
    /// The descriptor that signals are read from; none if they are not the daemon's.
    pub(super) signals: Option<OwnedFd>,
    /// Descriptors that a service manager has given this process, by name.
    pub(super) inherited: BTreeMap<String, OwnedFd>,
}

impl<'a> Process<'a> {
    /// Sets up a process that is the daemon's.
    pub(super) fn of_program(place: &Place, logger: &'a Logger) -> Result<Self, Failure> {
        let inherited = match place {
            Place::Socket(_) => BTreeMap::new(),
            Place::Path(_) => inherited()?,
        };
        raise_descriptor_limit();
        // Before any file is made: a signal that came in between would leave it behind.
        let signals = signals::set_up().map_err(resources("receive signals"))?;
        sigbus::install().map_err(resources("handle SIGBUS"))?;
        // Before the sandbox, which has no paths.
        own_proc();
        reach_manager();
        Ok(Self { owner: Owner::Program, logger: Some(logger), signals: Some(signals), inherited })
    }

    /// One that stays as it is.
    pub(super) fn of_embedder() -> Self {
        Self { owner: Owner::Embedder, logger: None, signals: None, inherited: BTreeMap::new() }
    }
}

/// The descriptors that a service manager has given this process, by name. Once, before anything is
/// opened: another time they would have two owners.
fn inherited() -> Result<BTreeMap<String, OwnedFd>, Failure> {
    let fds = sd_notify::listen_fds_with_names().map_err(Failure::Inherited)?;
    // SAFETY: LISTEN_PID names this process, so that they are its own, and nothing has taken them.
    Ok(fds.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}

/// The most descriptors that are asked for: a VMM's regions and every client, many times over.
const MOST_DESCRIPTORS: u64 = 65_536;

/// Raises the soft limit of open descriptors as far as the hard one allows: each region of guest
/// memory keeps one, and shells start their programs with 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
    if limit.current.is_some_and(|current| current < most) {
        let raised = Rlimit { current: Some(most), ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!("cannot raise the limit of open descriptors to {most}: {error}");
        }
    }
}
