// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket that frontends come from: one to listen on (see [`publish`]), or one that this process
//! was started with.

mod publish;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername};

pub(crate) use publish::{Access, Listening, SocketFile, listen, listen_for_manager, listen_on};

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Another process answers there.
    #[error("another process already listens on {}", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket; it stays.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// `LISTEN_FDS` names something else.
    #[error(
        "cannot use the descriptor that the service manager passes for {}: expected a Unix stream \
         socket that listens (ListenStream=)", .0.display()
    )]
    NotAListener(PathBuf),
    /// Another daemon does not finish replacing a dead socket.
    #[error(
        "cannot replace the dead socket {}: another process has held {}.lock for {} s",
        .0.display(), .0.display(), publish::PATIENCE.as_secs()
    )]
    Contended(PathBuf),
    /// The lock file is not ours.
    #[error(
        "cannot replace the dead socket {}: {}.lock is not a file of this user; remove it",
        .0.display(), .0.display()
    )]
    ForeignLock(PathBuf),
    /// `--socket-group`.
    #[error("--socket-group {0}: this machine has no such group")]
    NoGroup(String),
    /// The kernel's reason.
    #[error("cannot listen on {}", path.display())]
    Bind {
        /// The path asked for.
        path: PathBuf,
        /// What `bind` said.
        #[source]
        source: io::Error,
    },
    /// `--fd` names nothing.
    #[error(
        "--fd {0}: this descriptor is not open; expected a Unix socket that the program that starts the \
         daemon leaves open for it"
    )]
    NotOpen(RawFd),
    /// `--fd` names something else.
    #[error(
        "--fd {0}: expected a Unix stream socket that listens or is connected to a frontend, this \
         descriptor is none"
    )]
    NotAFrontend(RawFd),
    /// The kernel's reason.
    #[error("--fd {fd}: cannot use this socket")]
    Adopt {
        /// The descriptor.
        fd: RawFd,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Where frontends come from.
#[derive(Debug)]
pub(crate) enum Frontends {
    /// One after another.
    Listener(UnixListener),
    /// The only one there will be; none once it is served.
    Connected(Option<UnixStream>),
}

/// Takes over a socket that this process was started with, told by `SO_ACCEPTCONN`: some start
/// their vhost-user backends with a socket that listens, others with one that is connected.
///
/// Must be called before anything is opened: a number that the caller did not leave open may name
/// something of our own from then on.
pub(crate) fn adopt(fd: RawFd) -> Result<Frontends, SocketError> {
    let fail = |source| SocketError::Adopt { fd, source };
    // SAFETY: fcntl on a number, without pointers.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(SocketError::NotOpen(fd));
    }
    // SAFETY: it is open, and nothing here has opened anything yet, so it came from the program that
    // started this process, and is ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let is_unix = socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && socket_type(&socket) == Ok(SocketType::STREAM);
    if !is_unix {
        return Err(SocketError::NotAFrontend(fd));
    }
    fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(|error| fail(error.into()))?;
    if socket_acceptconn(&socket).map_err(|error| fail(error.into()))? {
        let listener = UnixListener::from(socket);
        // Another process may be faster to take a connection.
        listener.set_nonblocking(true).map_err(fail)?;
        return Ok(Frontends::Listener(listener));
    }
    match getpeername(&socket) {
        Ok(_) => Ok(Frontends::Connected(Some(socket.into()))),
        Err(_) => Err(SocketError::NotAFrontend(fd)),
    }
}

/// The number of the group that `--socket-group` names.
pub(crate) fn group(name: &str) -> Result<u32, SocketError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(SocketError::NoGroup(name.to_owned())),
    }
}
