// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file that the daemon has made, found again by its folder: the sandbox has no paths.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, open, statat, unlinkat};

/// See the module.
#[derive(Debug)]
pub(crate) struct MadeFile {
    folder: OwnedFd,
    name: CString,
    device: u64,
    inode: u64,
}

impl MadeFile {
    /// The file at `path` of this device and inode.
    pub(crate) fn new(path: &Path, (device, inode): (u64, u64)) -> io::Result<Self> {
        let parent = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let name = CString::new(name.as_bytes())?;
        Ok(Self { folder, name, device, inode })
    }

    /// The same file for a signal handler; good for as long as this exists.
    pub(crate) fn raw(&self) -> RawFile {
        RawFile {
            folder: self.folder.as_raw_fd(),
            name: self.name.clone(),
            device: self.device,
            inode: self.inode,
        }
    }

    /// Removes the file, if it is still the same one.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == (self.device, self.inode) => {
                Ok(unlinkat(&self.folder, &self.name, AtFlags::empty())?)
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for MadeFile {
    /// The folder.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// A [`MadeFile`] for a signal handler.
pub(crate) struct RawFile {
    folder: RawFd,
    name: CString,
    device: u64,
    inode: u64,
}

impl RawFile {
    /// Removes the file, if it is still the same one. Async-signal-safe.
    pub(crate) fn remove(&self) {
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        let (name, nofollow) = (self.name.as_ptr(), libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: a C string and writable memory of the structure's size.
        if unsafe { libc::fstatat(self.folder, name, stat.as_mut_ptr(), nofollow) } != 0 {
            return;
        }
        // SAFETY: the call has filled it in.
        let stat = unsafe { stat.assume_init() };
        if (stat.st_dev, stat.st_ino) == (self.device, self.inode) {
            // SAFETY: a C string.
            unsafe { libc::unlinkat(self.folder, name, 0) };
        }
    }
}
