// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The hinting queue (virtio 1.2, 5.5.6.6; `send_cmd_id_start`, `get_free_page_and_send`,
//! `send_cmd_id_stop`).

use core::time::Duration;

use super::{Notify, RequestError, Requests};
use crate::page_alloc::PfnRange;
use crate::page_alloc::geometry::PAGE_BYTES;
use crate::ram::{Gpa, GuestRam};
use crate::virtio::ring::Buffer;

/// The device wants no hints, and what the driver says after its last one (`VIRTIO_BALLOON_CMD_ID_STOP`).
pub const HINT_STOP: u32 = 0;
/// The device has used the hints: the driver may use the pages again (`VIRTIO_BALLOON_CMD_ID_DONE`).
pub const HINT_DONE: u32 = 1;

/// Hints free pages in rounds that the device asks for by a command id in its configuration.
#[derive(Debug)]
pub struct HintingQueue<M, N> {
    requests: Requests<M, N>,
    ram: M,
    buffer: Gpa,
    timeout: Option<Duration>,
}

impl<M: GuestRam, N: Notify> HintingQueue<M, N> {
    /// Bytes of the buffer.
    pub const BUFFER_BYTES: u64 = 4;

    /// With a `buffer`, [`HintingQueue::BUFFER_BYTES`] of the driver's own memory in `ram`. Without a
    /// `timeout` a chain is waited for as long as it takes.
    pub fn new(requests: Requests<M, N>, ram: M, buffer: Gpa, timeout: Option<Duration>) -> Self {
        Self { requests, ram, buffer, timeout }
    }

    /// Says which round the hints that follow belong to, or [`HINT_STOP`] after the last one.
    ///
    /// # Errors
    /// As for any request.
    pub fn command(&mut self, id: u32) -> Result<(), RequestError> {
        // The device may still read the buffer for the command before.
        if !self.requests.is_idle()? {
            return Err(RequestError::Busy);
        }
        self.ram
            .write(self.buffer, &id.to_le_bytes())
            .map_err(|error| RequestError::NotTaken(error.into()))?;
        let buffer = [Buffer::readable(self.buffer, 4)];
        self.requests.send(self.timeout, |ring| ring.add_chain(&buffer)).map(|_| ())
    }

    /// Hints a free block of at most 4 MiB, which must not be used until [`HINT_DONE`].
    ///
    /// # Errors
    /// As for any request.
    pub fn hint(&mut self, block: PfnRange) -> Result<(), RequestError> {
        let bytes = u64::from(block.pages()) * PAGE_BYTES;
        // More does not fit a descriptor, and no block of the page allocator is as large.
        let len = u32::try_from(bytes).unwrap_or(u32::MAX);
        let buffer = [Buffer::writable(Gpa(block.start.address()), len)];
        self.requests.send(self.timeout, |ring| ring.add_chain(&buffer)).map(|_| ())
    }
}
