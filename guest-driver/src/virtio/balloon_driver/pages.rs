// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The inflate and the deflate queue (`tell_host`).
//!
//! With [`DEVICE_INIT_ON_INFLATE`](crate::virtio::balloon::feature::DEVICE_INIT_ON_INFLATE) each list of the
//! inflate queue has a bitmap behind it, in which the device says which pages are zero.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Notify, RequestError, Requests};
use crate::page_alloc::Pfn;
use crate::ram::{Gpa, GuestRam, RamError};
use crate::virtio::ring::Buffer;

/// The most page frame numbers in one chain (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
pub const PFNS_PER_CHAIN: usize = 256;
const PFN_BYTES: usize = size_of::<u32>();
const BITMAP_BYTES: usize = PFNS_PER_CHAIN.div_ceil(8);

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
    bitmap: Option<Gpa>,
    timeout: Option<Duration>,
}

impl<M: GuestRam, N: Notify> PageQueue<M, N> {
    /// Bytes of the buffer.
    pub const BUFFER_BYTES: u64 = (PFNS_PER_CHAIN * PFN_BYTES) as u64;
    /// Bytes of the bitmap.
    pub const BITMAP_BYTES: u64 = BITMAP_BYTES as u64;

    /// With a `buffer`, [`PageQueue::BUFFER_BYTES`] of the driver's own memory in `ram`. Without a
    /// `timeout` a chain is waited for as long as it takes, as Linux does.
    pub fn new(requests: Requests<M, N>, ram: M, buffer: Gpa, timeout: Option<Duration>) -> Self {
        Self { requests, ram, buffer, bitmap: None, timeout }
    }

    /// Has the device say which pages are zero: with a `bitmap`, [`PageQueue::BITMAP_BYTES`] of the
    /// driver's own memory. For the inflate queue, where the feature was negotiated.
    #[must_use]
    pub fn with_bitmap(self, bitmap: Gpa) -> Self {
        Self { bitmap: Some(bitmap), ..self }
    }

    /// Tells the device of pages of 4 KiB and waits for its acknowledgement, chain by chain.
    ///
    /// # Errors
    /// [`TellError`].
    pub fn tell(&mut self, pages: &[Pfn]) -> Result<(), TellError> {
        self.tell_and_ask(pages, |_| {})
    }

    /// The same, and calls `is_zero` with each page that the device says is zero now. It says so of no
    /// page if there is no [bitmap](PageQueue::with_bitmap).
    ///
    /// # Errors
    /// [`TellError`].
    pub fn tell_and_ask(
        &mut self,
        pages: &[Pfn],
        mut is_zero: impl FnMut(Pfn),
    ) -> Result<(), TellError> {
        let mut told = 0;
        for chunk in pages.chunks(PFNS_PER_CHAIN) {
            let bitmap = self.tell_chunk(chunk).map_err(|cause| TellError { told, cause })?;
            told += chunk.len();
            let zero = |number: usize| bitmap[number / 8] >> (number % 8) & 1 == 1;
            let pages = chunk.iter().enumerate().filter(|(number, _)| zero(*number));
            pages.for_each(|(_, &pfn)| is_zero(pfn));
        }
        Ok(())
    }

    /// The bits that the device has set: those within the used length.
    fn tell_chunk(&mut self, pages: &[Pfn]) -> Result<[u8; BITMAP_BYTES], RequestError> {
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
        let list = Buffer::readable(self.buffer, len);
        let mut bits = [0; BITMAP_BYTES];
        let Some(bitmap) = self.bitmap else {
            self.requests.send(self.timeout, |ring| ring.add_chain(&[list]))?;
            return Ok(bits);
        };
        let not_taken = |error: RamError| RequestError::NotTaken(error.into());
        // Touched before, too: a device may not write where no memory is.
        self.ram.write(bitmap, &bits).map_err(not_taken)?;
        let room = u32::try_from(pages.len().div_ceil(8)).unwrap_or(0);
        let chain = [list, Buffer::writable(bitmap, room)];
        let used = self.requests.send(self.timeout, |ring| ring.add_chain(&chain))?;
        let written = usize::try_from(used.min(room)).unwrap_or(0);
        let lost = |error: RamError| RequestError::Lost(error.into());
        self.ram.read(bitmap, &mut bits[..written]).map_err(lost)?;
        Ok(bits)
    }
}
