// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which files guest memory may lie in: those that the kernel alone answers for.
//!
//! A file of FUSE or NFS lets its server decide how long a `fallocate`, a page fault or a `close`
//! takes. So memory of shmem and hugetlbfs is taken, of some local file systems if the operator
//! says so, and of no others.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{OFlags, SealFlags, StatxFlags, fcntl_get_seals, fcntl_getfl, fstatfs};

use super::areas::FileSize;
use super::descriptor::{Kind, known};
use crate::own_proc::own_proc;

/// What the operator may allow, by the names that the kernel has for them. All of them answer out of
/// the kernel, over a disk of this machine.
const LOCAL: [&str; 9] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "ramfs"];

/// What is wrong with the file of a region or of a dirty log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileFault {
    /// It is no file at all.
    #[error(
        "it comes as {0}, expected shared memory of the guest (memfd, /dev/shm or hugetlbfs); \
         with QEMU: memory-backend-memfd with share=on"
    )]
    Kind(String),
    /// It is a file of another file system.
    #[error(
        "it lies on {0}, expected shared memory (memfd, /dev/shm or hugetlbfs); with QEMU: \
         memory-backend-memfd with share=on, or have the daemon take files of ext4, xfs or btrfs \
         with --allow-file-memory"
    )]
    NotMemory(String),
    /// It is a file of a file system that may never answer.
    #[error("it lies on {0}, expected memory (memfd, /dev/shm, hugetlbfs) or {LOCAL:?}")]
    Elsewhere(String),
    /// Nothing can be written to it.
    #[error(
        "it is open for reading only, or sealed (F_SEAL_WRITE, F_SEAL_FUTURE_WRITE); expected read \
         and write"
    )]
    ReadOnly,
    /// The kernel would not say how large it is.
    #[error("it does not tell its size")]
    Size(#[source] io::Error),
}

/// How large the file is and what its pages are, if guest memory may lie in it.
///
/// # Errors
/// [`FileFault`]
pub(super) fn admit(fd: BorrowedFd<'_>, allow_files: bool) -> Result<FileSize, FileFault> {
    let kind = Kind::of(fd);
    match kind {
        Kind::Memory => {}
        Kind::File => {
            let name = file_system(fd).unwrap_or_else(|| "an unknown file system".to_owned());
            if !allow_files {
                return Err(FileFault::NotMemory(name));
            }
            if !LOCAL.contains(&name.as_str()) {
                return Err(FileFault::Elsewhere(name));
            }
        }
        other => return Err(FileFault::Kind(other.to_string())),
    }
    let writable = fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR);
    // With either seal it cannot be mapped for writing.
    let read_only = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
    let sealed = fcntl_get_seals(fd).is_ok_and(|seals| seals.intersects(read_only));
    if !writable || sealed {
        return Err(FileFault::ReadOnly);
    }
    let bytes = known(fd, StatxFlags::SIZE).map_err(FileFault::Size)?.stx_size;
    let stat = fstatfs(fd).map_err(|error| FileFault::Size(error.into()))?;
    let huge = stat.f_type == libc::HUGETLBFS_MAGIC;
    let page_bytes = if huge { stat.f_bsize.unsigned_abs() } else { base_page_bytes() };
    Ok(FileSize { bytes, page_bytes, huge })
}

fn base_page_bytes() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// The name of the file system that a file is on, as far as this process sees it mounted.
///
/// Found by its device number, since the mount may be one of the frontend's own.
fn file_system(fd: BorrowedFd<'_>) -> Option<String> {
    let known = known(fd, StatxFlags::TYPE).ok()?;
    let device = format!("{}:{}", known.stx_dev_major, known.stx_dev_minor);
    let mount = (known.stx_mask & libc::STATX_MNT_ID != 0).then_some(known.stx_mnt_id);
    find(&own_proc().mounts()?, &device, mount).map(str::to_owned)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw` (proc_pid_mountinfo(5)). btrfs
/// has numbers of its own for its subvolumes: its mount is named by the kernel, if it is ours.
fn find<'a>(table: &'a str, device: &str, mount: Option<u64>) -> Option<&'a str> {
    let field = |line: &'a str, index| line.split(' ').nth(index);
    let by_device = table.lines().find(|line| field(line, 2) == Some(device));
    let by_mount = || {
        let mount = mount?.to_string();
        table.lines().find(|line| field(line, 0) == Some(&mount))
    };
    by_device.or_else(by_mount)?.split(" - ").nth(1)?.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_system_is_found_by_device_or_mount() {
        let table = "36 35 98:0 /a /b rw master:1 - ext4 /dev/root rw\n\
                     37 35 0:50 / /c - d rw - fuse.sshfs x rw\n";
        assert_eq!(find(table, "98:0", None), Some("ext4"));
        assert_eq!(find(table, "0:77", Some(36)), Some("ext4"));
        assert_eq!(find(table, "0:77", Some(38)), None);
        assert_eq!(find("36 35 98:0 /a\n", "98:0", None), None);
    }

    #[test]
    fn shared_memory_is_accepted_and_disk_file_by_option() {
        let memory = tempfile::tempfile_in("/dev/shm").unwrap();
        memory.set_len(8192).unwrap();
        let size = admit(memory.as_fd(), false).unwrap();
        assert_eq!(size, FileSize { bytes: 8192, page_bytes: base_page_bytes(), huge: false });
        // Where the sources lie is on a disk, or in a container over one.
        let disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        if Kind::of(disk.as_fd()) == Kind::File {
            let text = admit(disk.as_fd(), false).unwrap_err().to_string();
            assert!(text.contains("share=on") && text.contains("--allow-file-memory"), "{text}");
        }
        let read = File::open("/proc/self/status").unwrap();
        assert!(matches!(admit(read.as_fd(), true), Err(FileFault::Elsewhere(_))));
        let zero = File::open("/dev/zero").unwrap();
        assert!(matches!(admit(zero.as_fd(), true), Err(FileFault::Kind(_))));
    }
}
