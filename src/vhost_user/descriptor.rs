// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a descriptor of the frontend is, asked in ways that cannot wait for the server of the file.
//!
//! `fstat`, `fstatfs` and an `ioctl` go to the server of a FUSE or NFS file, which may never answer.
//! `fcntl(F_GET_SEALS)` is answered by the kernel alone, and only for memory (shmem and hugetlbfs);
//! `getsockopt` for sockets; `statx` with `AT_STATX_DONT_SYNC` takes what the kernel knows already.
//! `fcntl(F_GETPIPE_SZ)` would wait for a lock that the other end of the pipe can hold.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use log::warn;
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_get_seals, fcntl_getfl, statx};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// What kind of thing a descriptor is open on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file of tmpfs, shmem (memfd) or hugetlbfs.
    Memory,
    /// An eventfd.
    EventFd,
    /// A pipe that can be written to.
    Pipe,
    /// A pipe that can only be read from.
    PipeToRead,
    /// A stream socket of `AF_UNIX`.
    UnixStream,
    /// Another socket of `AF_UNIX`.
    UnixSocket,
    /// A socket of another family.
    OtherSocket,
    /// A file of another file system.
    File,
    /// Anything else, or nothing that can be asked.
    Other,
}

impl Kind {
    /// Asks the kernel, and nothing but the kernel.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Self {
        let Ok(flags) = fcntl_getfl(fd) else { return Self::Other };
        if flags.contains(OFlags::PATH) {
            // A place in a file system: nothing is open.
            return Self::Other;
        }
        if fcntl_get_seals(fd).is_ok() {
            return Self::Memory;
        }
        if let Ok(domain) = sockopt::socket_domain(fd) {
            return match (domain, sockopt::socket_type(fd)) {
                (AddressFamily::UNIX, Ok(SocketType::STREAM)) => Self::UnixStream,
                (AddressFamily::UNIX, _) => Self::UnixSocket,
                _ => Self::OtherSocket,
            };
        }
        let Ok(known) = known(fd, StatxFlags::TYPE) else { return Self::Other };
        // What has no inode of its own (eventfd, epoll, timerfd, ...) has no type, either.
        if known.stx_mode & libc_mode(libc::S_IFMT) == 0 {
            return if is_eventfd(fd) { Self::EventFd } else { Self::Other };
        }
        match FileType::from_raw_mode(known.stx_mode.into()) {
            FileType::Fifo if flags & OFlags::RWMODE == OFlags::RDONLY => Self::PipeToRead,
            FileType::Fifo => Self::Pipe,
            FileType::RegularFile => Self::File,
            _ => Self::Other,
        }
    }

    /// Whether it is a socket of `AF_UNIX`.
    pub(crate) fn is_unix(self) -> bool {
        matches!(self, Self::UnixStream | Self::UnixSocket)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "a file of shared memory",
            Self::EventFd => "an eventfd",
            Self::Pipe => "a pipe",
            Self::PipeToRead => "the reading end of a pipe",
            Self::UnixStream => "a Unix stream socket",
            Self::UnixSocket => "a Unix socket that is no stream",
            Self::OtherSocket => "a socket that is not a Unix socket",
            Self::File => "a file",
            Self::Other => "a descriptor of another kind",
        })
    }
}

fn libc_mode(mode: libc::mode_t) -> u16 {
    u16::try_from(mode).unwrap_or(u16::MAX)
}

/// What the kernel knows of a file without asking its server.
pub(super) fn known(fd: BorrowedFd<'_>, what: StatxFlags) -> io::Result<rustix::fs::Statx> {
    Ok(statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, what)?)
}

/// An eventfd takes 8 bytes that add 0, at once and however full it is; an epoll set, a timerfd, a
/// signalfd and the like take no write. This needs no `/proc`.
fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    rustix::io::write(fd, &0_u64.to_ne_bytes()) == Ok(8)
}

/// The most threads that wait for a descriptor to be closed.
const MOST_CLOSING: usize = 4;

static CLOSING: AtomicUsize = AtomicUsize::new(0);

/// Closes what was not admitted, in a thread of its own: the server of a FUSE file is asked at each
/// close, and a TCP socket may linger.
///
/// With [`MOST_CLOSING`] such threads stuck this waits as well, and the session does not end.
pub(super) fn close_elsewhere(fds: Vec<OwnedFd>) {
    if fds.iter().all(|fd| closes_at_once(Kind::of(fd.as_fd()))) {
        return;
    }
    if CLOSING.fetch_add(1, Ordering::Relaxed) >= MOST_CLOSING {
        CLOSING.fetch_sub(1, Ordering::Relaxed);
        warn!("{MOST_CLOSING} threads wait for a frontend's descriptors to close");
        return;
    }
    let closing = thread::Builder::new().name("closing".to_owned()).spawn(move || {
        drop(fds);
        CLOSING.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = closing {
        CLOSING.fetch_sub(1, Ordering::Relaxed);
        warn!("cannot start a thread to close a frontend's descriptors: {error}");
    }
}

fn closes_at_once(kind: Kind) -> bool {
    kind.is_unix() || matches!(kind, Kind::Memory | Kind::EventFd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn every_kind_is_known_without_proc() {
        let kind = |fd: OwnedFd| Kind::of(fd.as_fd());
        assert_eq!(kind(memfd_create("kind", MemfdFlags::CLOEXEC).unwrap()), Kind::Memory);
        assert_eq!(kind(tempfile::tempfile_in("/dev/shm").unwrap().into()), Kind::Memory);
        assert_eq!(kind(eventfd(0, EventfdFlags::CLOEXEC).unwrap()), Kind::EventFd);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!([kind(reader), kind(writer)], [Kind::PipeToRead, Kind::Pipe]);
        assert_eq!(kind(UnixStream::pair().unwrap().0.into()), Kind::UnixStream);
        assert_eq!(kind(UnixDatagram::pair().unwrap().0.into()), Kind::UnixSocket);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(kind(tcp.into()), Kind::OtherSocket);
        assert_eq!(kind(File::open("/proc/self/status").unwrap().into()), Kind::File);
        for other in ["/dev/zero", "/"] {
            assert_eq!(kind(File::open(other).unwrap().into()), Kind::Other, "{other}");
        }
        assert_eq!(kind(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()), Kind::Other);
    }

    /// It blocks, is full, and must be neither waited for nor changed.
    #[test]
    fn a_full_eventfd_is_neither_waited_for_nor_changed() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let full = (u64::MAX - 1).to_ne_bytes();
        rustix::io::write(&fd, &full).unwrap();
        assert_eq!(Kind::of(fd.as_fd()), Kind::EventFd);
        let mut count = [0; 8];
        rustix::io::read(&fd, &mut count).unwrap();
        assert_eq!(count, full);
    }
}
