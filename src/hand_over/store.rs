// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The descriptor store of the process that starts the next daemon (`sd_notify(3)`, `FDSTORE=1`).

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;
use std::time::Duration;

use log::warn;
use rustix::cmsg_space;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};

/// Set in the environment of a daemon that goes on in the place of one that did not serve.
pub(crate) const WENT_BACK: &str = "BALLOON_WENT_BACK";

/// How long who keeps the store may take to read.
const PATIENCE: Duration = Duration::from_millis(200);

/// Connected once.
static MANAGER: OnceLock<Option<rustix::io::Result<OwnedFd>>> = OnceLock::new();

/// The descriptor store. What is put there comes back in the next daemon's `LISTEN_FDS`.
#[derive(Debug)]
pub(crate) struct Store {
    /// Connected once: who takes the name when its owner has died is told nothing.
    socket: OwnedFd,
}

impl Store {
    /// The store, if this process was started by someone who has one: systemd 254 or later where the
    /// unit sets `FileDescriptorStoreMax=`, or the keeper.
    pub(crate) fn find() -> Option<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let (name, _) = (set("NOTIFY_SOCKET")?, set("FDSTORE")?);
        match connected(&name.into_vec()) {
            Ok(socket) => Some(Self { socket }),
            Err(error) => {
                warn!("no descriptor store answers, the VM will not outlive this daemon: {error}");
                None
            }
        }
    }

    /// Puts a descriptor there. It stays even when its peer hangs up.
    pub(super) fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.say(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[fd])
    }

    /// Takes a descriptor out again.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    /// The keeper opens the program again; systemd does so in any case, and ignores it.
    pub(super) fn upgrade(&self) -> io::Result<()> {
        self.say("X_BALLOON_UPGRADE=1", &[])
    }

    /// The keeper asks the program whether it could go on from `record`, and says so to `answer`.
    /// systemd closes both.
    pub(super) fn check(&self, record: BorrowedFd<'_>, answer: BorrowedFd<'_>) -> io::Result<()> {
        self.say("X_BALLOON_CHECK=1", &[record, answer])
    }

    /// The daemon ends and the next one follows.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.say("X_BALLOON_LEAVES=1", &[])
    }

    /// The daemon serves.
    pub(super) fn ready(&self) -> io::Result<()> {
        self.say("READY=1", &[])
    }

    fn say(&self, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        send(&self.socket, text, &mut control)
    }
}

/// Tells the service manager without a store, if there is one (`sd_notify(3)`).
///
/// # Errors
/// What the kernel says.
pub(crate) fn tell(text: &str) -> io::Result<()> {
    match reach_manager() {
        Some(Ok(socket)) => send(socket, text, &mut SendAncillaryBuffer::default()),
        Some(Err(error)) => Err((*error).into()),
        None => Ok(()),
    }
}

/// The way to the service manager, if there is one. The first call connects: before the sandbox is
/// entered, which has no paths.
pub(crate) fn reach_manager() -> Option<&'static rustix::io::Result<OwnedFd>> {
    let manager = MANAGER.get_or_init(|| {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        Some(connected(&name.into_vec()))
    });
    manager.as_ref()
}

fn send(to: &OwnedFd, text: &str, control: &mut SendAncillaryBuffer<'_, '_, '_>) -> io::Result<()> {
    sendmsg(to, &[IoSlice::new(text.as_bytes())], control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A socket to a `NOTIFY_SOCKET`: a path, or a name in no file system behind an `@`.
fn connected(name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(OsStr::from_bytes(name))?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &address)?;
    Ok(socket)
}
