// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A control group with a memory limit, for a process that must keep within it.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// A control group of its own; removed when this is dropped, once its processes are gone.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
}

/// Memory that is charged to a group until this is dropped.
#[derive(Debug)]
pub struct Filled(OwnedFd);

impl Drop for Filled {
    fn drop(&mut self) {
        // To close the file is not enough: a process that another thread forks meanwhile has it open, too.
        let _ = ftruncate(&self.0, 0);
    }
}

impl MemoryLimit {
    /// Makes a group that may use `bytes` bytes, under version 1 or 2 of the interface. Root may do
    /// that, where the kernel has the memory controller and does not use it elsewhere.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(bytes: u64) -> Result<Self> {
        // Tests of one process may have a group each at the same time.
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let name = format!("vhost-device-balloon-{}-{number}", std::process::id());
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let folder = Path::new(root).join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self { folder };
            let file = group.folder.join(limit);
            if file.exists() {
                fs::write(&file, bytes.to_string())
                    .with_context(|| format!("cannot write {}", file.display()))?;
                return Ok(group);
            }
        }
        bail!("no control group with a memory limit can be made here")
    }

    /// Moves a process with all its threads into the group. What it has is not charged again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, pid: u32) -> Result<()> {
        let file = self.folder.join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| format!("{pid} into {}", file.display()))
    }

    /// Makes the kernel kill this process of the group before any other.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kill_first(pid: u32) -> Result<()> {
        let file = format!("/proc/{pid}/oom_score_adj");
        fs::write(&file, "1000").with_context(|| file)
    }

    /// Fills a memory file, charged to the group, until the kernel kills the process that does so, after
    /// those that it [kills first](Self::kill_first). Without swap such memory cannot be reclaimed, so the
    /// group stays at its limit.
    ///
    /// # Errors
    /// When the process does not end like that.
    pub fn fill(&self) -> Result<Filled> {
        let before = self.oom_kills()?;
        let file = memfd_create("filler", MemfdFlags::CLOEXEC)?;
        let procs = CString::new(self.folder.join("cgroup.procs").as_os_str().as_bytes())?;
        let page = [0_u8; 4096];
        // Forked outside of the group: what it frees when it ends was not charged to the group.
        // SAFETY: the child makes system calls only, until it ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; the string and the page are there.
            unsafe {
                if put(procs.as_ptr(), b"0") {
                    let whole = page.len().cast_signed();
                    while libc::write(file.as_raw_fd(), page.as_ptr().cast(), page.len()) == whole {
                    }
                }
                libc::_exit(1);
            }
        }
        ensure!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        let mut status = 0;
        // SAFETY: a child of this process.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        ensure!(waited == pid, "waitpid: {}", std::io::Error::last_os_error());
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        ensure!(signal == Some(libc::SIGKILL), "the filling process ended with {status:#x}");
        ensure!(self.oom_kills()? > before, "the kernel has killed no process of the group");
        Ok(Filled(file))
    }

    /// Processes of the group that the kernel has killed because of its limit.
    ///
    /// # Errors
    /// When the kernel does not count them (before 4.13).
    pub fn oom_kills(&self) -> Result<u64> {
        // Version 2, version 1.
        for name in ["memory.events", "memory.oom_control"] {
            if let Ok(text) = fs::read_to_string(self.folder.join(name)) {
                let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                let kills = kills.with_context(|| format!("{name} has no oom_kill: {text:?}"))?;
                return kills.trim().parse().with_context(|| format!("{name}: {text:?}"));
            }
        }
        bail!("{} does not count what was killed", self.folder.display())
    }
}

/// Writes to a file of the kernel; allocates nothing.
///
/// # Safety
/// `path` ends with a zero byte.
unsafe fn put(path: *const libc::c_char, text: &[u8]) -> bool {
    // SAFETY: as the caller says, and as many bytes as there are.
    unsafe {
        let fd = libc::open(path, libc::O_WRONLY);
        fd >= 0 && libc::write(fd, text.as_ptr().cast(), text.len()) == text.len().cast_signed()
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A group that is in use stays.
        let _ = fs::remove_dir(&self.folder);
    }
}
