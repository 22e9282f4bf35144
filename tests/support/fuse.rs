// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file of a FUSE file system whose server answers nothing once the file is open.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

// Requests of linux/fuse.h.
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;

/// The requests that wait, while none is answered.
type Waiting = Mutex<Option<Vec<u64>>>;

pub(crate) struct Fuse {
    /// An open file of it.
    pub(crate) file: File,
    device: Arc<File>,
    waiting: Arc<Waiting>,
    dir: TempDir,
}

impl Fuse {
    pub(crate) fn mount() -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let fd = device.as_raw_fd();
        let options = CString::new(format!("fd={fd},rootmode=40000,user_id=0,group_id=0")).unwrap();
        mount("silent", dir.path(), "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        let device = Arc::new(device);
        let waiting = Arc::<Waiting>::default();
        let (serving, kept) = (Arc::clone(&device), Arc::clone(&waiting));
        thread::spawn(move || serve(&serving, &kept));
        let file = OpenOptions::new().read(true).write(true).open(dir.path().join("memory"));
        Self { file: file.unwrap(), device, waiting, dir }
    }

    /// Nothing is answered until what this returns is dropped: a test that fails must not wait.
    pub(crate) fn stall(&self) -> Stalled<'_> {
        *self.waiting.lock().unwrap() = Some(Vec::new());
        Stalled(self)
    }
}

pub(crate) struct Stalled<'a>(&'a Fuse);

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        for unique in self.0.waiting.lock().unwrap().take().into_iter().flatten() {
            answer(&self.0.device, unique, 0, &[]);
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}

fn serve(mut device: &File, waiting: &Waiting) {
    let mut request = vec![0; 1 << 20];
    // It fails when the file system is gone.
    while let Ok(40..) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let unique = u64::from_ne_bytes(request[8..16].try_into().unwrap());
        let is_root = request[16..24] == 1_u64.to_ne_bytes();
        if let Some(waiting) = &mut *waiting.lock().unwrap() {
            waiting.push(unique);
            continue;
        }
        match word(4) {
            INIT => {
                let mut out = [7_u32, 31].map(u32::to_ne_bytes).concat();
                out.resize(64, 0);
                out[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
                answer(device, unique, 0, &out);
            }
            LOOKUP => {
                // Node 2, valid for no time.
                let mut out = 2_u64.to_ne_bytes().to_vec();
                out.resize(40, 0);
                out.extend(attributes(false));
                answer(device, unique, 0, &out);
            }
            GETATTR => {
                answer(device, unique, 0, &[[0; 16].as_slice(), &attributes(is_root)].concat());
            }
            OPEN => answer(device, unique, 0, &[0; 16]),
            // FORGET and the like want no answer, and may be given none.
            2 | 42 => {}
            _ => answer(device, unique, 0, &[]),
        }
    }
}

/// `struct fuse_attr` of the root directory, or of the file.
fn attributes(is_root: bool) -> Vec<u8> {
    let node = if is_root { 1_u64 } else { 2 };
    let mut out = [node, 64 << 20, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let mode = if is_root { 0o040_755 } else { 0o100_600_u32 };
    out.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat());
    out
}

fn answer(mut device: &File, unique: u64, error: i32, payload: &[u8]) {
    let len = u32::try_from(16 + payload.len()).unwrap();
    let mut out = len.to_ne_bytes().to_vec();
    out.extend(error.to_ne_bytes());
    out.extend(unique.to_ne_bytes());
    out.extend(payload);
    // One that was interrupted is gone.
    let _ = device.write(&out);
}
