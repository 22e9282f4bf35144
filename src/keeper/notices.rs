// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket on which a daemon says that it serves, and puts descriptors in the store
//! (`sd_notify(3)`).

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, recvmsg, socket_with,
};
use rustix::process::Pid;

/// The most descriptors that are kept: a daemon has six.
pub(super) const MOST_KEPT: usize = 64;
const MOST_AT_ONCE: u32 = 256;
/// As systemd takes.
const MOST_BYTES: usize = 4096;

/// What a daemon has said.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// It serves.
    pub(super) ready: bool,
    /// The program that is at its path now is to go on from it.
    pub(super) upgrade: bool,
    /// That program is asked whether it could go on from the first, and the answer goes to the second.
    pub(super) checks: Vec<[OwnedFd; 2]>,
}

/// See the module.
pub(super) struct Notices {
    socket: OwnedFd,
    name: String,
}

impl Notices {
    /// A socket in no file system, under a name that the kernel makes up.
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        set_socket_passcred(&socket, true)?;
        bind(&socket, &SocketAddrUnix::new_unnamed())?;
        let address = SocketAddrUnix::try_from(getsockname(&socket)?)?;
        let name = address.abstract_name().and_then(|name| str::from_utf8(name).ok());
        let name = name.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let name = format!("@{name}");
        Ok(Self { socket, name })
    }

    /// `NOTIFY_SOCKET`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Takes what `daemon` has said so far. Others that say something are not listened to.
    pub(super) fn receive(
        &self,
        daemon: Pid,
        kept: &mut BTreeMap<String, OwnedFd>,
    ) -> io::Result<Said> {
        let mut said = Said::default();
        let mut bytes = [0; MOST_BYTES];
        // No more at once: others may send without end.
        for _ in 0..MOST_AT_ONCE {
            let mut space =
                [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_KEPT), ScmCredentials(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                flags,
            ) {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(said),
                Err(error) => return Err(error.into()),
            };
            let (mut fds, mut from) = (Vec::new(), None);
            for message in control.drain() {
                match message {
                    RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
                    RecvAncillaryMessage::ScmCredentials(credentials) => {
                        from = Some(credentials.pid);
                    }
                    _ => {}
                }
            }
            let cut = got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
            if cut || from != Some(daemon) {
                continue;
            }
            if let Ok(text) = str::from_utf8(&bytes[..got.bytes]) {
                take(text, fds, kept, &mut said);
            }
        }
        Ok(said)
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes one notice.
fn take(text: &str, fds: Vec<OwnedFd>, kept: &mut BTreeMap<String, OwnedFd>, said: &mut Said) {
    let says = |line| text.lines().any(|other| other == line);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    said.ready |= says("READY=1");
    said.upgrade |= says("X_BALLOON_UPGRADE=1");
    if says("X_BALLOON_CHECK=1") {
        said.checks.extend(<[OwnedFd; 2]>::try_from(fds));
        return;
    }
    // Names are passed on in a list with colons.
    let is_name =
        |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let Some(name) = name.filter(is_name) else { return };
    if says("FDSTOREREMOVE=1") {
        kept.remove(name);
    }
    if says("FDSTORE=1")
        && (kept.contains_key(name) || kept.len() < MOST_KEPT)
        && let Some(fd) = fds.into_iter().next()
    {
        kept.insert(name.to_owned(), fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpid;
    use std::os::unix::net::UnixDatagram;

    fn say(notices: &Notices, text: &str, fds: &[BorrowedFd<'_>]) {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, connect, sendmsg};
        let socket = UnixDatagram::unbound().unwrap();
        let name = notices.name().strip_prefix('@').unwrap();
        connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let text = [io::IoSlice::new(text.as_bytes())];
        sendmsg(&socket, &text, &mut control, SendFlags::empty()).unwrap();
    }

    #[test]
    fn descriptors_are_kept_until_they_are_removed() {
        let notices = Notices::listen().unwrap();
        let mut kept = BTreeMap::new();
        let receive = |kept: &mut _| notices.receive(getpid(), kept).unwrap();
        assert!(!receive(&mut kept).ready);
        let file = notices.as_fd();
        say(&notices, "FDSTORE=1\nFDNAME=record\nFDPOLL=0", &[file]);
        say(&notices, "FDSTORE=1\nFDNAME=none", &[]);
        say(&notices, "FDSTORE=1\nFDNAME=two:names", &[file]);
        say(&notices, "READY=1\nSTATUS=serves", &[]);
        let said = receive(&mut kept);
        assert!(said.ready && !said.upgrade && said.checks.is_empty());
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["record"]);
        say(&notices, "FDSTOREREMOVE=1\nFDNAME=record", &[]);
        say(&notices, "X_BALLOON_UPGRADE=1", &[]);
        say(&notices, "X_BALLOON_CHECK=1", &[file, file]);
        let said = receive(&mut kept);
        assert!(!said.ready && said.upgrade && said.checks.len() == 1);
        say(&notices, "X_BALLOON_CHECK=1", &[file]);
        assert!(receive(&mut kept).checks.is_empty());
        assert!(kept.is_empty());
    }

    #[test]
    fn another_process_is_not_listened_to() {
        let notices = Notices::listen().unwrap();
        let mut kept = BTreeMap::new();
        say(&notices, "FDSTORE=1\nFDNAME=record\nREADY=1", &[notices.as_fd()]);
        let said = notices.receive(Pid::INIT, &mut kept).unwrap();
        assert!(!said.ready && kept.is_empty());
    }

    #[test]
    fn store_takes_no_more_than_it_says() {
        let notices = Notices::listen().unwrap();
        let mut kept = BTreeMap::new();
        for number in 0..MOST_KEPT + 5 {
            let text = format!("FDSTORE=1\nFDNAME={number}");
            say(&notices, &text, &[notices.as_fd()]);
            notices.receive(getpid(), &mut kept).unwrap();
        }
        assert_eq!(kept.len(), MOST_KEPT);
    }
}
