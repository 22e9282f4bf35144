// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A cpuset, in whichever cgroups the kernel has.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use guest_agent::placement::Hierarchy;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::system;

const V1: &str = "/cgroup-v1";
const V2: &str = "/cgroup-v2";
const NAME: &str = "placement";

/// A cpuset of its own below the root.
pub(super) struct Cpuset {
    pub(super) hierarchy: Hierarchy,
    folder: String,
    mems: File,
}

impl Cpuset {
    /// Makes it, of version 1 if the kernel has that: it does not migrate pages.
    pub(super) fn new() -> Result<Self> {
        let (hierarchy, folder) = match mounted("cgroup", V1, Some("cpuset")) {
            Ok(()) => (Hierarchy::V1, V1),
            Err(_) => {
                mounted("cgroup2", V2, None).context("the kernel has neither kind of cgroups")?;
                (Hierarchy::V2, V2)
            }
        };
        let root = folder;
        let folder = format!("{root}/{NAME}");
        if hierarchy == Hierarchy::V2 {
            let controllers = system::read_file(&format!("{root}/cgroup.controllers"))?;
            ensure!(
                controllers.split_whitespace().any(|name| name == "cpuset"),
                "cgroup.controllers is {controllers:?}: expected cpuset (CONFIG_CPUSETS)"
            );
            system::write_file(&format!("{root}/cgroup.subtree_control"), "+cpuset")?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("creating {folder}"))?;
        if hierarchy == Hierarchy::V1 {
            // Without CPUs it takes no task.
            let cpus = system::read_file(&format!("{root}/cpuset.cpus"))?;
            system::write_file(&format!("{folder}/cpuset.cpus"), cpus.trim())?;
        }
        let path = format!("{folder}/cpuset.mems");
        let mems = OpenOptions::new().write(true).open(&path);
        Ok(Self { hierarchy, mems: mems.with_context(|| format!("opening {path}"))?, folder })
    }

    /// Sets the nodes, as `0` or `0-1`.
    pub(super) fn set_mems(&self, nodes: &str) -> Result<()> {
        self.mems.write_all_at(nodes.as_bytes(), 0).with_context(|| format!("mems {nodes:?}"))
    }

    /// The file to which a process writes that it joins.
    pub(super) fn joins(&self) -> String {
        format!("{}/cgroup.procs", self.folder)
    }
}

/// Mounts it, unless it is there.
fn mounted(kind: &str, folder: &str, options: Option<&str>) -> Result<()> {
    if Path::new(folder).join("cgroup.procs").exists() {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| format!("creating {folder}"))?;
    match mount(Some(kind), folder, Some(kind), MsFlags::empty(), options) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mounting {kind}")),
    }
}
