// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The statistics queue (virtio 1.2, 5.5.6.3; `stats_handle_request`).

use alloc::vec::Vec;
use core::time::Duration;

use super::{Notify, RequestError, Requests};
use crate::ram::{Gpa, GuestRam};
use crate::virtio::ring::Buffer;

/// What a statistic is about (virtio 1.2, 5.5.6.4, and `linux/virtio_balloon.h` from 10 on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum StatTag {
    /// Bytes swapped in.
    SwapIn = 0,
    /// Bytes swapped out.
    SwapOut = 1,
    /// Page faults that needed I/O.
    MajorFaults = 2,
    /// Page faults that did not.
    MinorFaults = 3,
    /// Unused memory, in bytes.
    MemFree = 4,
    /// All memory, in bytes.
    MemTotal = 5,
    /// What can be had without swapping, in bytes.
    MemAvailable = 6,
    /// Caches that can be dropped, in bytes.
    DiskCaches = 7,
    /// Huge pages allocated.
    HugetlbAllocations = 8,
    /// Huge pages that could not be allocated.
    HugetlbFailures = 9,
    /// Times that the OOM killer ran.
    OomKills = 10,
}

/// One statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is about.
    pub tag: StatTag,
    /// How much.
    pub value: u64,
}

impl Stat {
    /// The packed size in memory, in bytes.
    pub const BYTES: usize = 10;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&(self.tag as u16).to_le_bytes());
        bytes[2..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}

/// Keeps one buffer of statistics with the device, which returns it to ask for newer ones.
#[derive(Debug)]
pub struct StatsQueue<M, N> {
    requests: Requests<M, N>,
    ram: M,
    buffer: Gpa,
}

impl<M: GuestRam, N: Notify> StatsQueue<M, N> {
    /// The most statistics in one buffer.
    pub const MOST: usize = 16;
    /// Bytes of the buffer.
    pub const BUFFER_BYTES: u64 = (Self::MOST * Stat::BYTES) as u64;

    /// With a `buffer`, [`StatsQueue::BUFFER_BYTES`] of the driver's own memory in `ram`. The device
    /// has none until [`StatsQueue::offer`] is called for the first time.
    pub fn new(requests: Requests<M, N>, ram: M, buffer: Gpa) -> Self {
        Self { requests, ram, buffer }
    }

    /// Gives the device a buffer with `stats`, of which those past [`StatsQueue::MOST`] are left
    /// out. It is not waited for: the device keeps it until it asks.
    ///
    /// # Errors
    /// [`RequestError::Busy`] if the device has a buffer still, and as for any request.
    pub fn offer(&mut self, stats: &[Stat]) -> Result<(), RequestError> {
        if !self.requests.is_idle()? {
            return Err(RequestError::Busy);
        }
        let bytes: Vec<u8> =
            stats.iter().take(Self::MOST).flat_map(|stat| stat.to_bytes()).collect();
        self.ram
            .write(self.buffer, &bytes)
            .map_err(|error| RequestError::NotTaken(error.into()))?;
        // 160 bytes at most.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.requests.submit(|ring| ring.add_chain(&[Buffer::readable(self.buffer, len)]))
    }

    /// Waits until the device asks, and answers with what `collect` returns; says whether it asked.
    ///
    /// # Errors
    /// As [`StatsQueue::offer`].
    pub fn serve(
        &mut self,
        timeout: Option<Duration>,
        collect: impl FnOnce() -> Vec<Stat>,
    ) -> Result<bool, RequestError> {
        match self.requests.wait(timeout) {
            Ok(()) => self.offer(&collect()).map(|()| true),
            Err(RequestError::Timeout) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
