// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that a kernel pins for as long as the process is there.

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::memory::Mapping;

/// `struct io_uring_params`, of which nothing is set here.
const PARAMS_BYTES: usize = 120;
/// `IORING_REGISTER_BUFFERS`: pins each page of the buffers.
const REGISTER_BUFFERS: libc::c_uint = 0;

/// A ring whose registered buffers are the memory.
pub(super) struct Pin {
    _ring: Option<OwnedFd>,
}

impl Pin {
    /// Pins them.
    pub(super) fn of(mappings: &[Mapping]) -> Result<Self> {
        let buffers: Vec<libc::iovec> = mappings
            .iter()
            .filter_map(Mapping::range)
            .map(|(start, length)| libc::iovec {
                iov_base: start.as_ptr().cast(),
                iov_len: length.get(),
            })
            .collect();
        if buffers.is_empty() {
            return Ok(Self { _ring: None });
        }
        let mut params = [0_u8; PARAMS_BYTES];
        let count = libc::c_uint::try_from(buffers.len()).context("the number of buffers")?;
        // SAFETY: the kernel reads and writes as many bytes as the structure has.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        let ring = Errno::result(ring).context("making a ring: expected CONFIG_IO_URING")?;
        let ring = i32::try_from(ring).context("the ring's descriptor")?;
        // SAFETY: the descriptor is new and has no other owner.
        let owned = unsafe { OwnedFd::from_raw_fd(ring) };
        // SAFETY: the buffers are mappings that live as long as the process, and nothing is ever
        // submitted that would write to them.
        let registered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring,
                REGISTER_BUFFERS,
                buffers.as_ptr(),
                count,
            )
        };
        Errno::result(registered).context("registering buffers")?;
        Ok(Self { _ring: Some(owned) })
    }
}
