// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device in virtual time: the state machine of the daemon without queues, sockets and threads, for
//! simulations of many hosts.
//!
//! The driver's half reads and writes the configuration space as a real one does. Statistics come as
//! numbers, without a buffer in guest memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::balloon::Balloon;
use super::features::Feature;
use super::options::DeviceOptions;
use super::statistics::{Sample, Statistics};
use super::target::{Lease, TargetRefused};
use crate::lock::lock;

/// One device of a simulation.
pub struct SimulatedDevice {
    balloon: Balloon,
    /// What the simulation calls zero.
    began: Instant,
}

impl SimulatedDevice {
    /// A device with a connected guest of so much memory, whose driver runs.
    pub fn new(memory_bytes: u64) -> Self {
        let options = DeviceOptions { statistics: true, ..DeviceOptions::default() };
        let device = Self { balloon: Balloon::new(options, Arc::default()), began: Instant::now() };
        device.connect(memory_bytes);
        device
    }

    /// A VMM connects, and a driver begins: what the one before it has left does not hold.
    pub fn connect(&self, memory_bytes: u64) {
        self.balloon.reset();
        self.balloon.begin_session();
        self.balloon.set_memory_bytes(memory_bytes);
        self.balloon
            .set_acked_features(1 << Feature::StatsVq as u64 | 1 << Feature::PageReporting as u64);
        self.balloon.queue_runs();
    }

    fn at(&self, now: Duration) -> Instant {
        self.began + now
    }

    /// `PUT /v1/target` with a lease.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn lease(&self, bytes: u64, length: Duration, now: Duration) -> Result<(), String> {
        if let Some(memory) = self.balloon.memory_bytes() {
            TargetRefused::check(bytes, memory).map_err(|refused| refused.to_string())?;
        }
        let lease = Lease::new(bytes, false, self.at(now) + length);
        self.balloon.set_lease(Some(lease.map_err(|error| error.to_string())?));
        Ok(())
    }

    /// `DELETE /v1/target`
    pub fn end_lease(&self) {
        self.balloon.set_lease(None);
    }

    /// The daemon's timer: a lease that is over goes.
    pub fn pass_time(&self, now: Duration) {
        self.balloon.take_lease_over(self.at(now));
    }

    /// Pages of 4 KiB that the driver reads as wanted (`num_pages`).
    pub fn num_pages(&self) -> u32 {
        let bytes = self.balloon.read_config(0, 4, true);
        bytes.try_into().map_or(0, u32::from_le_bytes)
    }

    /// The driver writes how many pages are in the balloon (`actual`).
    pub fn set_actual(&self, pages: u32) {
        self.balloon.write_config(4, &pages.to_le_bytes(), true);
    }

    /// The driver's statistics come, each of its tag's number.
    pub fn set_statistics(&self, values: SimulatedStatistics, now: Duration) {
        let values = Statistics {
            total_bytes: Some(values.total_bytes),
            available_bytes: Some(values.available_bytes),
            free_bytes: Some(values.free_bytes),
            major_faults: Some(values.major_faults),
            oom_kills: Some(values.oom_kills),
            ..Statistics::default()
        };
        let balloon_bytes = self.balloon.actual_bytes();
        let sample = Sample { values, unknown_tags: 0, at: self.at(now), balloon_bytes };
        lock(&self.balloon.statistics).sample = Some(sample);
    }

    /// The last statistics, and how old they are.
    pub fn statistics(&self, now: Duration) -> Option<(Duration, SimulatedStatistics)> {
        let sample = self.balloon.statistics()?;
        let known = |value: Option<u64>| value.unwrap_or(0);
        let values = SimulatedStatistics {
            total_bytes: sample.values.total_bytes?,
            available_bytes: sample.values.available_bytes?,
            free_bytes: known(sample.values.free_bytes),
            major_faults: known(sample.values.major_faults),
            oom_kills: known(sample.values.oom_kills),
        };
        Some((self.at(now).saturating_duration_since(sample.at), values))
    }

    /// Bytes of memory that the guest has.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.balloon.memory_bytes()
    }

    /// Bytes that are wanted in the balloon now.
    pub fn target_bytes(&self) -> u64 {
        self.balloon.target_bytes()
    }

    /// Bytes that the driver says are in it.
    pub fn actual_bytes(&self) -> Option<u64> {
        self.balloon.actual_bytes()
    }
}

/// The statistics that a policy looks at (virtio 1.3, 5.5.6.4); bytes, and counts since the boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimulatedStatistics {
    /// Memory in all, without the balloon.
    pub total_bytes: u64,
    /// Memory that could be had without swapping.
    pub available_bytes: u64,
    /// Free memory.
    pub free_bytes: u64,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
    /// How often the OOM killer ran.
    pub oom_kills: u64,
}
