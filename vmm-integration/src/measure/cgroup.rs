// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A control group with a memory limit, for a process that must keep within it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A control group of its own; removed when this is dropped, once its processes are gone.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
}

impl MemoryLimit {
    /// Makes a group that may use `bytes` bytes, under version 1 or 2 of the interface. Root may do
    /// that, where the kernel has the memory controller and does not use it elsewhere.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(bytes: u64) -> Result<Self> {
        let name = format!("vhost-device-balloon-{}", std::process::id());
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
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A group that is in use stays.
        let _ = fs::remove_dir(&self.folder);
    }
}
