// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The descriptor store of whoever starts this daemon again (`sd_notify(3)`, `FDSTORE=1`).

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

/// Set in the environment of a daemon that goes on in the place of one that did not serve.
pub(crate) const WENT_BACK: &str = "BALLOON_WENT_BACK";

/// The descriptor store. What is put there comes back in the next daemon's `LISTEN_FDS`.
#[derive(Debug)]
pub(crate) struct Store {
    address: SocketAddrUnix,
}

impl Store {
    /// The store, if this process was started by someone who has one: systemd 254 or later where the
    /// unit sets `FileDescriptorStoreMax=`, or the keeper.
    pub(crate) fn find() -> Option<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let (name, _) = (set("NOTIFY_SOCKET")?, set("FDSTORE")?);
        let address = address(&name.into_vec()).ok()?;
        Some(Self { address })
    }

    /// Puts a descriptor there. It stays even when its peer hangs up.
    pub(super) fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.say(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[fd])
    }

    /// Takes a descriptor out again.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    /// The keeper opens the program anew; systemd does so in any case, and ignores it.
    pub(super) fn upgrade(&self) -> io::Result<()> {
        self.say("X_BALLOON_UPGRADE=1", &[])
    }

    /// The daemon serves.
    pub(super) fn ready(&self) -> io::Result<()> {
        self.say("READY=1", &[])
    }

    fn say(&self, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let text = [IoSlice::new(text.as_bytes())];
        sendmsg_addr(&socket, &self.address, &text, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The address of a `NOTIFY_SOCKET`: a path, or a name in no file system behind an `@`.
fn address(name: &[u8]) -> rustix::io::Result<SocketAddrUnix> {
    match name.strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(OsStr::from_bytes(name)),
    }
}
