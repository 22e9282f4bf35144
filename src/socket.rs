//! The socket that frontends come from: one to listen on, with the file that it leaves in the file
//! system, or one that this process was started with.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::warn;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, getpeername, socket_with,
};

use crate::emergency::{self, Registration};

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("another process already listens on {}", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket; it is left alone.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Another process is about to listen in the same folder.
    #[error("another process is starting to listen beside {}, try again", .0.display())]
    Contended(PathBuf),
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
        "--fd {0}: this descriptor is not open; expected a Unix socket that whoever starts the \
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
    // SAFETY: it is open, and nothing here has opened anything yet, so it came from whoever
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

/// The file of a listening socket; removed when dropped, if it is still the same file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    _emergency: Registration,
}

/// Listens on `path`. A socket that a dead process left there is replaced; anything else is not.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    // Of two that find the same dead socket, the second would remove the first one's new socket. A
    // folder that cannot be opened cannot be locked; whether it will do is for `bind` to say.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).ok();
    match folder.as_ref().map_or(Ok(()), File::try_lock) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(SocketError::Contended(path.to_owned())),
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)
        }
        result => result,
    };
    let listener = listener.map_err(fail)?;
    let inode = inode(path).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let _emergency = emergency::remove_on_exit(path, inode);
    Ok((listener, SocketFile { path: path.to_owned(), inode, _emergency }))
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(fail)?;
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match knock(path) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(fail),
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

/// Connects to whoever listens on `path`, and never waits for one who has too many waiting already.
fn knock(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever has put something else there since keeps it.
        let still_ours = inode(&self.path).is_ok_and(|inode| inode == self.inode);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // A listener that goes leaves its file behind.
        drop(UnixListener::bind(&path).unwrap());
        let (listener, file) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
        assert!(UnixStream::connect(&path).is_ok());
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn who_lets_nobody_in_listens_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let busy = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&busy, 0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
    }

    #[test]
    fn of_two_at_once_one_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let folder = File::open(dir.path()).unwrap();
        folder.lock().unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Contended(_))));
        drop(folder);
        assert!(listen(&path).is_ok());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        let (_listener, file) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }
}
