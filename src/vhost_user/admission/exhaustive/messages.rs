// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages that carry a descriptor, and what they carry it for (vhost-user protocol).

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vhost::vhost_user::message::FrontendReq as R;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::things::{FILE_BYTES, Purpose};
use crate::vhost_user::areas::Area;
use crate::vhost_user::vring::signal_once;

/// A message that carries one descriptor.
pub(super) struct Carrier {
    pub(super) request: R,
    pub(super) takes: &'static [Purpose],
    /// Files of a disk as well, if the operator allows it.
    takes_disk: bool,
    /// One of these is said of what is not taken.
    pub(super) says: &'static [&'static str],
}

const MEMORY: &[&str] =
    &["expected shared memory", "expected memory (memfd", "open for reading only, or sealed"];
const EVENT: &[&str] = &["expected an eventfd"];

pub(super) const CARRIERS: [Carrier; 7] = [
    Carrier::new(R::ADD_MEM_REG, &[Purpose::Memory], MEMORY).or_disk(),
    Carrier::new(R::SET_MEM_TABLE, &[Purpose::Memory], MEMORY).or_disk(),
    Carrier::new(R::SET_LOG_BASE, &[Purpose::Memory], MEMORY),
    Carrier::new(R::SET_VRING_KICK, &[Purpose::Event], EVENT),
    Carrier::new(R::SET_VRING_ERR, &[Purpose::Event], EVENT),
    Carrier::new(
        R::SET_VRING_CALL,
        &[Purpose::Signal],
        &["expected an eventfd, a pipe or a Unix socket"],
    ),
    Carrier::new(
        R::SET_BACKEND_REQ_FD,
        &[Purpose::Channel],
        &["expected a connected Unix stream socket"],
    ),
];

impl Carrier {
    const fn new(request: R, takes: &'static [Purpose], says: &'static [&'static str]) -> Self {
        Self { request, takes, takes_disk: false, says }
    }

    const fn or_disk(self) -> Self {
        Self { takes_disk: true, ..self }
    }

    /// Whether it carries descriptors for this.
    pub(super) fn is_for(&self, purpose: Purpose, allow_files: bool) -> bool {
        let disk = allow_files && self.takes_disk && purpose == Purpose::Disk;
        disk || self.takes.contains(&purpose)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let area = Area { gpa: 0, bytes: FILE_BYTES, user: 1 << 40, offset: 0 };
        message(self.request as u32, &payload(self.request, area))
    }

    /// What the daemon does with it must work.
    pub(super) fn use_as_the_daemon_does(&self, fd: &OwnedFd, what: &str) {
        match self.request {
            R::ADD_MEM_REG | R::SET_MEM_TABLE | R::SET_LOG_BASE => {
                use_memory(fd, 0, FILE_BYTES, what);
            }
            R::SET_VRING_CALL => {
                let file = File::from(fd.try_clone().unwrap());
                let done = signal_once(file).unwrap_or_else(|| panic!("no way to signal: {what}"));
                // A socket may have no peer: its frontend notices.
                assert!(done.is_ok() || what.starts_with("unix"), "{what}: {done:?}");
            }
            R::SET_BACKEND_REQ_FD => {
                assert_eq!(rustix::io::write(fd, b"message"), Ok(7), "{what}");
            }
            _ => assert_eq!(rustix::io::write(fd, &1_u64.to_ne_bytes()), Ok(8), "{what}"),
        }
    }
}

/// Maps it, touches both ends and punches the first page.
pub(super) fn use_memory(fd: &OwnedFd, offset: u64, bytes: u64, what: &str) {
    let len = usize::try_from(bytes).unwrap();
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping, of which nothing else knows.
    let mapped = unsafe { mmap(std::ptr::null_mut(), len, access, flags, fd, offset) };
    let Ok(start) = mapped else {
        // Of huge pages there may be none left.
        assert!(what.contains("huge"), "cannot be mapped: {what}: {mapped:?}");
        return;
    };
    for at in [0, len - 1] {
        // SAFETY: within the mapping, which the file holds whole.
        unsafe { start.cast::<u8>().add(at).write_volatile(1) };
    }
    // SAFETY: the mapping from above, whole.
    unsafe { munmap(start, len).unwrap() };
    let page = if what.contains("huge") { FILE_BYTES } else { 4096 };
    let file = File::from(fd.try_clone().unwrap());
    fallocate(&file, FallocateMode::PunchHole, true, offset, page)
        .unwrap_or_else(|error| panic!("cannot be punched: {what}: {error}"));
}

/// The payload with which a message names this part of a file, or its first queue.
pub(super) fn payload(request: R, area: Area) -> Vec<u8> {
    match request {
        R::ADD_MEM_REG => [&[0; 8], area.write().as_slice()].concat(),
        R::SET_MEM_TABLE => [1_u64.to_ne_bytes().as_slice(), &area.write()].concat(),
        R::SET_LOG_BASE => [area.bytes, area.offset].map(u64::to_ne_bytes).concat(),
        R::SET_VRING_KICK | R::SET_VRING_ERR | R::SET_VRING_CALL => vec![0; 8],
        _ => Vec::new(),
    }
}

pub(super) fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    [[request, 1, size].map(u32::to_ne_bytes).as_flattened(), payload].concat()
}

/// `VHOST_USER_REM_MEM_REG` may carry one, which is closed.
pub(super) const REMOVE: u32 = R::REM_MEM_REG as u32;

/// Any other message of the protocol, in the form that it has; `None` for one that says in its answer
/// what is wrong with its descriptor.
pub(super) fn other(request: u32) -> Option<Vec<u8>> {
    let payload = match R::try_from(request).unwrap() {
        R::SET_DEVICE_STATE_FD => return None,
        R::REM_MEM_REG => vec![0; 40],
        R::GET_CONFIG | R::SET_CONFIG => vec![0; 12],
        // A queue of a size that one can have.
        R::SET_VRING_NUM => [0, 128].map(u32::to_ne_bytes).concat(),
        // A frontend that reads the configuration.
        R::SET_FEATURES | R::SET_PROTOCOL_FEATURES => u64::MAX.to_ne_bytes().to_vec(),
        R::SET_VRING_BASE | R::GET_VRING_BASE | R::SET_VRING_ENABLE => vec![0; 8],
        // Its rings lie nowhere, which is another reason.
        R::SET_VRING_ADDR => return None,
        _ => Vec::new(),
    };
    Some(message(request, &payload))
}
