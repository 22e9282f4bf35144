// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! No file system and no network: a mount namespace with an empty root, and a network namespace with
//! nothing in it (`namespaces(7)`).
//!
//! What is open stays open, sockets included. A user without `CAP_SYS_ADMIN` needs a user namespace for
//! that (`user_namespaces(7)`), in which other users have no number.

use std::fs;
use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{
    DumpableBehavior, fchdir, getegid, geteuid, pivot_root, set_dumpable_behavior,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Missing;

/// A folder that every Linux has: the empty root is mounted there for a moment.
const PLACE: &str = "/proc";

/// Leaves those that the process was started in. Returns what is missing.
pub(super) fn enter() -> Option<Missing> {
    let missing = |part, why: io::Error| {
        let refused = why.kind() == io::ErrorKind::PermissionDenied;
        Some(Missing { part, why: why.to_string(), refused })
    };
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    match unshare(own) {
        Err(Errno::PERM) => {
            if let Err(error) = unshare(own | UnshareFlags::NEWUSER) {
                return missing("namespaces of its own", error.into());
            }
            if let Err(error) = map_own_user(uid, gid) {
                return missing("a user of its user namespace, and an empty root", error);
            }
        }
        Err(error) => return missing("namespaces of its own", error.into()),
        Ok(()) => {}
    }
    match empty_root() {
        Err(error) => missing("an empty root", error.into()),
        Ok(()) => None,
    }
}

/// Gives the daemon's user its own number, and no other user any.
fn map_own_user(uid: u32, gid: u32) -> io::Result<()> {
    // The files of a process that is not dumpable are root's.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let written = fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")));
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    written
}

fn unshare(what: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the table of descriptors stays shared.
    unsafe { unshare_unsafe(what) }
}

fn empty_root() -> rustix::io::Result<()> {
    // Nothing of what follows reaches the namespace that the process comes from.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount("none", PLACE, "tmpfs", flags, Some(c"size=4k,nr_inodes=1,mode=0"))?;
    let root = open(PLACE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    fchdir(&root)?;
    // The old root lands on the new one, from where it goes.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)
}
