// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `/proc` says of this process (`proc(5)`), through descriptors that are opened once: the sandbox
//! has no paths.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use rustix::fs::{RawDir, SeekFrom, seek};

use crate::lock::lock;

/// The most that is read of the mount table.
const MOST_MOUNT_BYTES: u64 = 4 << 20;
/// Bytes for the entries of a folder, at a time.
const ENTRIES: usize = 4096;

static OWN: OnceLock<OwnProc> = OnceLock::new();

/// See the module. What is missing is unknown.
#[derive(Debug)]
pub(crate) struct OwnProc {
    threads: Option<Mutex<File>>,
    descriptors: Option<Mutex<File>>,
    statm: Option<File>,
    mounts: Option<File>,
    program: Option<PathBuf>,
}

/// Returns those of this process. The first call opens them: before the sandbox is entered.
pub(crate) fn own_proc() -> &'static OwnProc {
    OWN.get_or_init(|| {
        let open = |name: &str| File::open(format!("/proc/self/{name}")).ok();
        OwnProc {
            threads: open("task").map(Mutex::new),
            descriptors: open("fd").map(Mutex::new),
            statm: open("statm"),
            mounts: open("mountinfo"),
            program: program().ok(),
        }
    })
}

impl OwnProc {
    /// IDs of the threads.
    pub(crate) fn threads(&self) -> Vec<i32> {
        self.threads.as_ref().map(numbers).unwrap_or_default()
    }

    /// Number of open descriptors.
    pub(crate) fn open_descriptors(&self) -> Option<usize> {
        self.descriptors.as_ref().map(|folder| numbers(folder).len())
    }

    /// Sizes in pages (proc_pid_statm(5)); empty if unknown.
    pub(crate) fn statm(&self) -> String {
        self.statm.as_ref().and_then(|file| read(file, 4096).ok()).unwrap_or_default()
    }

    /// The mount table of the namespace that the process was started in (proc_pid_mountinfo(5)). The
    /// kernel writes it by itself, without a look into a file system.
    pub(crate) fn mounts(&self) -> Option<String> {
        read(self.mounts.as_ref()?, MOST_MOUNT_BYTES).ok()
    }

    /// The path of this program, whatever is there now.
    pub(crate) fn program(&self) -> Option<&PathBuf> {
        self.program.as_ref()
    }
}

fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let name = path.as_os_str().as_bytes();
    // The kernel says so of a file that was replaced.
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Ok(OsString::from(OsStr::from_bytes(name)).into())
}

fn read(file: &File, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut page = [0; 4096];
    loop {
        let at = bytes.len() as u64;
        let count = file.read_at(&mut page, at)?;
        if count == 0 || at >= most {
            return String::from_utf8(bytes).map_err(io::Error::other);
        }
        bytes.extend_from_slice(&page[..count]);
    }
}

/// The entries of a folder that are numbers.
fn numbers(folder: &Mutex<File>) -> Vec<i32> {
    // Two readers would share one position.
    let folder = lock(folder);
    let mut found = Vec::new();
    if seek(&*folder, SeekFrom::Start(0)).is_err() {
        return found;
    }
    let mut space = [MaybeUninit::uninit(); ENTRIES];
    let mut entries = RawDir::new(&*folder, &mut space);
    while let Some(Ok(entry)) = entries.next() {
        found.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::gettid;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn threads_that_come_and_go_are_seen() {
        let own = own_proc();
        assert!(own.threads().contains(&gettid().as_raw_pid()));
        let (say, said) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let other = thread::spawn(move || {
            say.send(gettid().as_raw_pid()).unwrap();
            ended.recv().unwrap();
        });
        let id = said.recv().unwrap();
        assert!(own.threads().contains(&id));
        end.send(()).unwrap();
        other.join().unwrap();
        assert!(!own.threads().contains(&id));
    }

    #[test]
    fn files_are_read_again_each_time() {
        let own = own_proc();
        assert_eq!(own.statm().split_whitespace().count(), 7);
        assert!(own.mounts().unwrap().contains(" - proc "));
        assert!(own.program().unwrap().is_absolute());
        let many: Vec<_> = (0..1000).map(|_| File::open("/dev/null").unwrap()).collect();
        // More than fit one call.
        assert!(own.open_descriptors().unwrap() > many.len());
    }
}
