// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One hostd a directory of sockets: two would set each other's targets.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The file that is locked in each directory. It stays: whether it is there says nothing.
const FILE: &str = "hostd.lock";

/// Why a directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("another hostd steers the daemons of {}: stop it first, or use --dry-run", .0.display())]
    Held(PathBuf),
    #[error("cannot lock {}", path.display())]
    Failed {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The locks of this process, which end with it.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Vec<(PathBuf, File)>,
}

impl Locks {
    /// Locks those of the directories that exist and are not locked yet.
    ///
    /// # Errors
    /// If another process has one of them.
    pub(crate) fn take(&mut self, dirs: &[PathBuf]) -> Result<(), LockError> {
        // A directory that was made again has another file.
        self.held.retain(|(path, file)| is_at(file, path));
        for dir in dirs.iter().filter(|dir| dir.is_dir()) {
            let path = dir.join(FILE);
            if self.held.iter().all(|(held, _)| *held != path) {
                let file = lock(dir, &path)?;
                self.held.push((path, file));
            }
        }
        Ok(())
    }
}

fn lock(dir: &Path, path: &Path) -> Result<File, LockError> {
    let failed = |source| LockError::Failed { path: path.to_owned(), source };
    // Each process that may open it may lock it.
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held(dir.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |one: &std::fs::Metadata, other: &std::fs::Metadata| {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    matches!((file.metadata(), path.metadata()), (Ok(one), Ok(other)) if same(&one, &other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn directory_has_one_holder() {
        let root = tempfile::tempdir().unwrap();
        let dirs = [root.path().join("a"), root.path().join("b")];
        let (mut one, mut other) = (Locks::default(), Locks::default());
        // None is there yet.
        one.take(&dirs).unwrap();
        fs::create_dir(&dirs[1]).unwrap();
        one.take(&dirs).unwrap();
        one.take(&dirs).unwrap();
        assert!(matches!(other.take(&dirs), Err(LockError::Held(dir)) if dir == dirs[1]));
        drop(one);
        other.take(&dirs).unwrap();
    }

    #[test]
    fn directory_that_is_made_again_is_locked_again() {
        let root = tempfile::tempdir().unwrap();
        let dirs = [root.path().join("a")];
        let (mut one, mut other) = (Locks::default(), Locks::default());
        for _ in 0..2 {
            fs::create_dir(&dirs[0]).unwrap();
            one.take(&dirs).unwrap();
            assert!(other.take(&dirs).is_err());
            fs::remove_dir_all(&dirs[0]).unwrap();
        }
    }
}
