// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process at the other end of a control connection, for the log.

use std::fmt;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};

/// A process as the kernel knows it from when it connected (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process of this machine.
    Process {
        /// Its effective user.
        uid: u32,
        /// Its ID; 0 if it has none in the daemon's PID namespace. `rustix` has a type for it that
        /// cannot be 0.
        pid: i32,
    },
    /// The kernel does not say.
    Unknown,
}

impl Peer {
    /// The process that connected this Unix socket.
    pub(super) fn of(socket: &impl AsFd) -> Self {
        getsockopt(socket, sockopt::PeerCredentials).map_or(Self::Unknown, |credentials| {
            Self::Process { uid: credentials.uid(), pid: credentials.pid() }
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { uid, pid: 0 } => write!(f, "UID {uid} of another PID namespace"),
            Self::Process { uid, pid } => write!(f, "UID {uid}, PID {pid}"),
            Self::Unknown => write!(f, "an unknown process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn peer_of_socket_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let (uid, pid) = (nix::unistd::geteuid(), std::process::id());
        assert_eq!(Peer::of(&one).to_string(), format!("UID {uid}, PID {pid}"));
    }

    #[test]
    fn peer_without_visible_pid_named_by_user() {
        let peer = Peer::Process { uid: 107, pid: 0 };
        assert_eq!(peer.to_string(), "UID 107 of another PID namespace");
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Peer::of(&no_socket).to_string(), "an unknown process");
    }
}
