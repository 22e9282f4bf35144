// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why the daemon cannot run.

use std::io;
use std::net::SocketAddr;

use super::socket::SocketError;
use crate::hand_over::HandOverError;
use crate::sandbox::SandboxError;
use crate::vhost_user::SessionError;

/// Why the daemon cannot start, or ended early.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DaemonError(#[from] Failure);

/// What failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A descriptor that the event loop needs.
    #[error("cannot {what}")]
    Resources {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The one frontend there is cannot be served.
    #[error("cannot serve the frontend")]
    Frontend(#[source] SessionError),
    /// The one frontend there was did not just hang up; the log says more.
    #[error("the session with the frontend of --fd failed")]
    Session,
    /// Of the daemon before this one.
    #[error("cannot go on where the daemon before this one was")]
    HandOver(#[from] HandOverError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// `LISTEN_FDS` and what belongs to it.
    #[error(
        "cannot take over the sockets of the service manager (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES)"
    )]
    Inherited(#[source] io::Error),
    /// Threads of a session that is over, in another program's process.
    #[error(
        "the threads of a session did not end after its VMM disconnected, so no other VMM can be served"
    )]
    Stuck,
    /// The frontend of the daemon before this one cannot be served; the log says more.
    #[error("cannot go on with the frontend of the daemon before this one")]
    Behind,
    /// `--metrics-address`.
    #[error("cannot listen on --metrics-address {address}")]
    Metrics {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The event loop itself.
    #[error("the event loop failed: {0:?}")]
    EventLoop(event_manager::Error),
}

impl From<event_manager::Error> for Failure {
    fn from(error: event_manager::Error) -> Self {
        Self::EventLoop(error)
    }
}

/// Names what the kernel had no resources for.
pub(super) fn resources<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |source| Failure::Resources { what, source: source.into() }
}
