// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The inflate and the deflate queue (`tell_host`).

use alloc::vec::Vec;
use core::time::Duration;

use super::{Notify, RequestError, Requests};
use crate::page_alloc::Pfn;
use crate::ram::{Gpa, GuestRam};
use crate::virtio::ring::Buffer;

/// The most page frame numbers in one chain (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
pub const PFNS_PER_CHAIN: usize = 256;
const PFN_BYTES: usize = size_of::<u32>();

/// The device did not acknowledge all pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("giving pages to the device failed: it acknowledged the first {told} only")]
pub struct TellError {
    /// Pages ahead of the chain that failed, all acknowledged.
    pub told: usize,
    /// Why that failed.
    #[source]
    pub cause: RequestError,
}

/// A queue of arrays of page frame numbers: to inflate, pages that the guest gives away; to
/// deflate, pages that it takes back.
#[derive(Debug)]
pub struct PageQueue<M, N> {
    requests: Requests<M, N>,
    ram: M,
    buffer: Gpa,
    timeout: Option<Duration>,
}

impl<M: GuestRam, N: Notify> PageQueue<M, N> {
    /// Bytes of the buffer.
    pub const BUFFER_BYTES: u64 = (PFNS_PER_CHAIN * PFN_BYTES) as u64;

    /// With a `buffer`, [`PageQueue::BUFFER_BYTES`] of the driver's own memory in `ram`. Without a
    /// `timeout` a chain is waited for as long as it takes, as Linux does.
    pub fn new(requests: Requests<M, N>, ram: M, buffer: Gpa, timeout: Option<Duration>) -> Self {
        Self { requests, ram, buffer, timeout }
    }

    /// Tells the device of pages of 4 KiB and waits for its acknowledgement, chain by chain.
    ///
    /// # Errors
    /// [`TellError`].
    pub fn tell(&mut self, pages: &[Pfn]) -> Result<(), TellError> {
        let mut told = 0;
        for chunk in pages.chunks(PFNS_PER_CHAIN) {
            self.tell_chunk(chunk).map_err(|cause| TellError { told, cause })?;
            told += chunk.len();
        }
        Ok(())
    }

    fn tell_chunk(&mut self, pages: &[Pfn]) -> Result<(), RequestError> {
        // The device may still read the buffer for the chain before.
        if !self.requests.is_idle()? {
            return Err(RequestError::Busy);
        }
        let bytes: Vec<u8> = pages.iter().flat_map(|pfn| pfn.0.to_le_bytes()).collect();
        self.ram
            .write(self.buffer, &bytes)
            .map_err(|error| RequestError::NotTaken(error.into()))?;
        // A chunk is 1024 bytes at most.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let buffer = [Buffer::readable(self.buffer, len)];
        self.requests.send(self.timeout, |ring| ring.add_chain(&buffer))
    }
}
