// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listens at a path: the socket appears there only once it listens, with its mode and group.
//!
//! A socket that is bound and does not listen yet refuses connections, and looks like one that a
//! dead process left. So it is bound and listens under a name of its own in the same folder, and is
//! then linked to its path, which fails if anything is there. No daemon waits for another, unless
//! both replace the same dead socket: they take turns with a lock file beside it, which no other
//! user can open, and which is gone once the socket is there.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use rustix::fs::{AtFlags, CWD, Gid, Mode, RenameFlags, chownat, fchmod, renameat_with};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};
use rustix::process::{geteuid, umask};

use super::SocketError;
use crate::cli::MAX_SOCKET_PATH;
use crate::daemon::emergency::{self, Registration};
use crate::daemon::made::MadeFile;
use crate::hand_over::Held;
use crate::lock::lock;

/// How long another daemon may take to replace a dead socket at the same path. It makes a few
/// system calls meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Names of our own that are tried until one is free.
const MOST_NAMES: usize = 100;

/// Held while the umask of the process is not its own: of two that change it at once the second would
/// restore what the first has set.
static UMASK: Mutex<()> = Mutex::new(());

/// Which users may connect: the mode of the socket's file, and its group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) mode: u32,
    /// None for the group that the daemon's new files have.
    pub(crate) group: Option<u32>,
}

impl Access {
    /// The daemon's user, and no other.
    pub(crate) const OWNER: Self = Self { mode: 0o600, group: None };
}

/// What [`listen`] returns.
#[derive(Debug)]
pub(crate) struct Listening {
    /// Does not block.
    pub(crate) listener: UnixListener,
    /// None for a socket of the service manager.
    pub(crate) file: Option<SocketFile>,
    /// Whether a dead process had left its socket there.
    pub(crate) replaced: bool,
}

/// Listens on `path`. A socket that a dead process left there is replaced; anything else is not.
/// Sets the umask of the process for a moment.
pub(crate) fn listen(path: &Path, access: Access) -> Result<Listening, SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    let (listener, hidden) = listen_beside(path, access).map_err(fail)?;
    let inode = inode(&hidden.0).map_err(fail)?;
    let mut replaced = false;
    while !publish(&hidden.0, path).map_err(fail)? {
        if find(path)? != Found::Dead {
            continue;
        }
        let _lock = Lock::take(path)?;
        // Another daemon may have replaced it meanwhile, and its own socket must stay.
        if find(path)? == Found::Dead {
            // In one step: none that starts meanwhile finds the path free and publishes there.
            fs::rename(&hidden.0, path).map_err(fail)?;
            replaced = true;
            break;
        }
    }
    let made = MadeFile::new(path, inode).map_err(fail)?;
    let emergency = Some(emergency::remove_on_exit(made.raw()));
    let file = Some(SocketFile { path: path.to_owned(), made, emergency, held: None });
    Ok(Listening { listener, file, replaced })
}

/// Goes on listening where the daemon before this one did, whose file is at `path`; on a new socket
/// where that is gone.
pub(crate) fn listen_on(
    listener: OwnedFd,
    path: &Path,
    access: Access,
) -> Result<Listening, SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    let inode = match inode(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return listen(path, access),
        inode => inode.map_err(fail)?,
    };
    let made = MadeFile::new(path, inode).map_err(fail)?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).map_err(fail)?;
    let file = Some(SocketFile { path: path.to_owned(), made, emergency: None, held: None });
    Ok(Listening { listener, file, replaced: false })
}

/// Listens on a socket of the service manager, whose file is not the daemon's.
pub(crate) fn listen_for_manager(listener: OwnedFd, path: &Path) -> Result<Listening, SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    if socket_domain(&listener) != Ok(AddressFamily::UNIX)
        || socket_type(&listener) != Ok(SocketType::STREAM)
        || socket_acceptconn(&listener) != Ok(true)
    {
        return Err(SocketError::NotAListener(path.to_owned()));
    }
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(Listening { listener, file: None, replaced: false })
}

/// A name that is removed again, and the folder's descriptor that it goes through, if any.
struct Hidden(PathBuf, #[expect(dead_code, reason = "the path goes through it")] Option<File>);

impl Drop for Hidden {
    fn drop(&mut self) {
        // Gone if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens under a name of its own in the folder of `path`.
fn listen_beside(path: &Path, access: Access) -> io::Result<(UnixListener, Hidden)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux makes the file with the mode of the unbound socket, less the umask.
    fchmod(&socket, Mode::from_raw_mode(access.mode))?;
    let hidden = bind_beside(&socket, path)?;
    if let Some(group) = access.group {
        let group = Some(Gid::from_raw(group));
        chownat(CWD, &hidden.0, None, group, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    // As many as the system allows.
    rustix::net::listen(&socket, i32::MAX)?;
    Ok((UnixListener::from(socket), hidden))
}

fn bind_beside(socket: &OwnedFd, path: &Path) -> io::Result<Hidden> {
    for _ in 0..MOST_NAMES {
        let (name, folder) = name_beside(path)?;
        let address = SocketAddrUnix::new(&name)?;
        let bound = {
            let _alone = lock(&UMASK);
            let before = umask(Mode::empty());
            let bound = bind(socket, &address);
            umask(before);
            bound
        };
        match bound {
            Ok(()) => return Ok(Hidden(name, folder)),
            Err(Errno::ADDRINUSE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// A name in the folder of `path` that most likely is free, short enough for a socket, and the
/// descriptor that it goes through, if any.
fn name_beside(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let random = RandomState::new().build_hasher().finish() & 0xff_ffff;
    let mut name = OsString::from(path);
    // Beginning as the path does, so that an operator recognizes it in a list of sockets.
    name.push(format!(".{random:06x}"));
    if name.len() <= MAX_SOCKET_PATH {
        return Ok((name.into(), None));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(folder.unwrap_or(Path::new(".")))?;
    let name = format!("/proc/self/fd/{}/.balloon.{random:06x}", folder.as_raw_fd());
    Ok((name.into(), Some(folder)))
}

/// Gives the socket its name; false if something is there already.
fn publish(hidden: &Path, path: &Path) -> io::Result<bool> {
    let linked = match fs::hard_link(hidden, path) {
        // A file system without links.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            match renameat_with(CWD, hidden, CWD, path, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) => return Ok(false),
                // What linking said: not every file system can rename in this way.
                Err(_) => Err(error),
            }
        }
        linked => linked,
    };
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket on which no process listens.
    Dead,
}

/// Looks at what is at `path`: an error if it must stay.
fn find(path: &Path) -> Result<Found, SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(SocketError::Bind { path: path.to_owned(), source }),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match knock(path) {
        Err(Errno::CONNREFUSED) => Ok(Found::Dead),
        Err(Errno::NOENT) => Ok(Found::Nothing),
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

/// Connects to the process that listens on `path`, and never waits for one whose backlog is full.
fn knock(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

/// The lock on a dead socket. Released, and its file removed, when dropped.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, SocketError> {
        let fail = |source| SocketError::Bind { path: socket.to_owned(), source };
        let foreign = || SocketError::ForeignLock(socket.to_owned());
        let mut path = OsString::from(socket);
        path.push(".lock");
        let path = PathBuf::from(path);
        let until = Instant::now() + PATIENCE;
        loop {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                // A symbolic link, or a file that another user made.
                Err(error) => match error.raw_os_error() {
                    Some(libc::ELOOP | libc::EACCES | libc::EISDIR) => return Err(foreign()),
                    _ => return Err(fail(error)),
                },
            };
            let metadata = file.metadata().map_err(fail)?;
            if !metadata.is_file() || metadata.uid() != geteuid().as_raw() {
                return Err(foreign());
            }
            match file.try_lock() {
                // The one that held it before has removed the file: a lock on that excludes none.
                Ok(()) if inode(&path).ok() != Some((metadata.dev(), metadata.ino())) => {}
                Ok(()) => return Ok(Self { path, _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    thread::sleep(LOOK_EVERY);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(SocketError::Contended(socket.to_owned()));
                }
                Err(TryLockError::Error(error)) => return Err(fail(error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is locked still: the next one makes a file of its own.
        if let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The file of a listening socket; removed when dropped, if it is still the same file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Before the file: it is dropped first.
    emergency: Option<Registration>,
    made: MadeFile,
    held: Option<Arc<Held>>,
}

impl SocketFile {
    /// Its folder, and nothing else of it.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.made.as_fd()
    }

    /// Stays there for the next daemon, unless this one ends for good.
    pub(crate) fn hold(&mut self, held: &Arc<Held>) {
        self.emergency = None;
        self.held = Some(Arc::clone(held));
    }
}

impl Drop for SocketFile {
    /// The socket must listen until then: one that does not looks dead, and another daemon may
    /// replace it at any moment.
    fn drop(&mut self) {
        if self.held.as_ref().is_some_and(|held| !held.is_finished()) {
            return;
        }
        if let Err(error) = self.made.remove() {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests;
