//! The listening socket, and the file that it leaves in the file system.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::warn;

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
}

/// The file of a listening socket; removed when dropped, if it is still the same file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
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
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(fail)?;
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(fail)
        }
        _ => Err(SocketError::InUse(path.to_owned())),
    }
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
