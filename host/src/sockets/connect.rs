// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections to sockets whose path is longer than the kernel's address of a socket: a pod's volume has some 120
//! bytes before its first file.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use tokio::net::UnixStream;

/// The longest path that an address holds, in bytes (`sun_path` of unix(7), less the byte that ends it).
const LONGEST: usize = 107;

/// Connects to the socket at a path of any length.
///
/// # Errors
/// What the kernel says.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= LONGEST {
        return UnixStream::connect(path).await;
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let dir = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // The same directory, by a short name, while it is open.
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    UnixStream::connect(short).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tokio::net::UnixListener;

    #[test]
    fn paths_of_any_length_are_connected_to() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let root = tempfile::tempdir().unwrap();
            let short = root.path().join("short");
            let long = root.path().join("a".repeat(200)).join("b".repeat(200));
            std::fs::create_dir_all(&long).unwrap();
            symlink(&long, &short).unwrap();
            let missing = connect(&long.join("vm.ctl")).await.unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound);
            let _listener = UnixListener::bind(short.join("vm.ctl")).unwrap();
            connect(&long.join("vm.ctl")).await.unwrap();
            connect(&short.join("vm.ctl")).await.unwrap();
        });
    }
}
