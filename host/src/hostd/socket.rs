// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket of hostd itself.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;

use tokio::net::UnixListener;

/// Why it cannot listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("another process listens at {}: stop it first, or use --socket", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is no socket", .0.display())]
    NoSocket(PathBuf),
    #[error("cannot listen at {}", path.display())]
    Failed {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The file of the socket, which is removed when this is dropped if it is still the same.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|data| data.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, for this user alone. The socket of a dead process is replaced in one step.
///
/// # Errors
/// [`SocketError`]
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |source| SocketError::Failed { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(data) if !std::os::unix::fs::FileTypeExt::is_socket(&data.file_type()) => {
            return Err(SocketError::NoSocket(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(SocketError::InUse(path.to_owned()));
        }
        _ => {}
    }
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", process::id()));
    // No client finds it before its mode is set.
    let hidden = path.with_file_name(name);
    let published = || {
        let _ = fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        fs::set_permissions(&hidden, Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&hidden)?.ino();
        fs::rename(&hidden, path)?;
        Ok((listener, SocketFile { path: path.to_owned(), inode }))
    };
    published().map_err(|error| {
        let _ = fs::remove_file(&hidden);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test)
    }

    #[test]
    fn socket_of_a_dead_process_is_replaced() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let (_listener, file) = listen(&path).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
            drop(file);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn file_that_is_no_socket_stays() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            fs::write(&path, "x").unwrap();
            assert!(matches!(listen(&path), Err(SocketError::NoSocket(_))));
            assert_eq!(fs::read(&path).unwrap(), b"x");
            let nowhere = dir.path().join("missing/s");
            assert!(matches!(listen(&nowhere), Err(SocketError::Failed { .. })));
        });
    }
}
