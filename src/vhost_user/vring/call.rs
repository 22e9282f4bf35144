// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tells the driver, through a descriptor of the frontend, that chains were returned.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::net::{SendFlags, send};

use crate::vhost_user::descriptor::Kind;

/// One signal: an eventfd adds it, and a reader of a pipe or a socket takes it as one.
const SIGNAL: [u8; 8] = 1_u64.to_ne_bytes();

/// What the frontend gave to be signalled (`VHOST_USER_SET_VRING_CALL`).
///
/// Others have the file open, too, so no flag of it is changed (O_NONBLOCK belongs to all who have
/// it open), and none is relied on.
#[derive(Debug)]
pub(super) struct Call {
    file: File,
    way: Way,
}

/// How a file takes a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As VMMs have it.
    Eventfd,
    /// Readers take eight bytes at a time.
    Pipe,
    /// The same; user-mode Linux calls a socket pair a pipe.
    Socket,
}

/// A call descriptor that cannot be signalled, or not without the risk that it blocks.
#[derive(Debug, thiserror::Error)]
#[error("a call descriptor is {0}, expected an eventfd, a pipe or a Unix socket")]
pub(super) struct NoSignal(Kind);

impl Call {
    /// # Errors
    /// [`NoSignal`].
    pub(super) fn new(file: File) -> Result<Self, NoSignal> {
        let way = match Kind::of(file.as_fd()) {
            Kind::EventFd => Way::Eventfd,
            Kind::Pipe => Way::Pipe,
            kind if kind.is_unix() => Way::Socket,
            kind => return Err(NoSignal(kind)),
        };
        Ok(Self { file, way })
    }

    /// Signals once. Where there is no room for a signal, earlier ones were not heard yet, and this
    /// one is as good as sent.
    ///
    /// A blocking eventfd, and a pipe before Linux 6.4, cannot be written without the risk that
    /// another writer fills it between the look and the write. Then a signal of the watchdog
    /// interrupts the write.
    ///
    /// # Errors
    /// What the kernel says; `EINTR` is not tried again.
    pub(super) fn signal(&self) -> io::Result<()> {
        let sent = match self.way {
            Way::Socket => {
                send(&self.file, &SIGNAL, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
            }
            Way::Pipe => match self.write_without_waiting() {
                Err(Errno::OPNOTSUPP) => self.write_if_there_is_room(),
                sent => sent,
            },
            Way::Eventfd => self.write_if_there_is_room(),
        };
        match sent {
            Ok(()) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_without_waiting(&self) -> Result<(), Errno> {
        let from = libc::iovec { iov_base: SIGNAL.as_ptr().cast_mut().cast(), iov_len: 8 };
        let fd = self.file.as_raw_fd();
        // SAFETY: one buffer of eight bytes that outlives the call and is only read.
        let sent = unsafe { libc::pwritev2(fd, &raw const from, 1, -1, libc::RWF_NOWAIT) };
        if sent < 0 {
            return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        Ok(())
    }

    fn write_if_there_is_room(&self) -> Result<(), Errno> {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))?;
        if !fds[0].revents().contains(PollFlags::OUT) {
            return Err(Errno::AGAIN);
        }
        write(&self.file, &SIGNAL).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::pipe;
    use std::os::fd::OwnedFd;

    fn number(from: impl AsFd) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(from, &mut bytes), Ok(8));
        u64::from_ne_bytes(bytes)
    }

    /// What is signalled and what receives it, all of them blocking.
    fn pairs() -> Vec<(OwnedFd, OwnedFd)> {
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        let (read, write) = pipe().unwrap();
        let mut pairs = vec![(event.try_clone().unwrap(), event), (write, read)];
        for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
            let flags = SocketFlags::empty();
            pairs.push(socketpair(AddressFamily::UNIX, kind, flags, None).unwrap());
        }
        pairs
    }

    #[test]
    fn every_kind_is_signalled_and_keeps_its_flags() {
        for (ours, theirs) in pairs() {
            let flags = fcntl_getfl(&theirs).unwrap();
            let call = Call::new(File::from(ours)).unwrap();
            call.signal().unwrap();
            assert_eq!(number(&theirs), 1);
            assert_eq!(fcntl_getfl(&theirs).unwrap(), flags);
            assert!(!flags.contains(OFlags::NONBLOCK));
        }
    }

    /// If one of them blocked, this test would not end.
    #[test]
    fn what_is_full_does_not_block() {
        for (ours, theirs) in pairs() {
            let call = Call::new(File::from(ours)).unwrap();
            if call.way == Way::Eventfd {
                write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            }
            for _ in 0..20_000 {
                call.signal().unwrap();
            }
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        for (ours, theirs) in pairs().into_iter().skip(1) {
            let call = Call::new(File::from(ours)).unwrap();
            drop(theirs);
            assert_eq!(call.signal().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
