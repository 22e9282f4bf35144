// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio-balloon device (virtio 1.3, section 5.5): what the guest sees of it.
//!
//! Nothing here knows a file descriptor or makes a system call. A chain is collected into a
//! [`queues::Request`], which names ranges and what is done with them; the `discard` room does it.

mod balloon;
pub(crate) mod chain;
mod config_space;
mod driver;
pub(crate) mod features;
mod hinting;
mod lease;
mod log;
mod options;
mod queues;
pub(crate) mod reclaim;
mod saved;
mod simulated;
mod squeeze;
mod statistics;
mod target;

pub(crate) use balloon::Balloon;
pub(crate) use chain::Outcome;
pub(crate) use config_space::TargetError;
pub(crate) use driver::DriverState;
pub(crate) use features::QueueRole;
pub(crate) use hinting::HintingState;
pub(crate) use options::{DeviceOptions, IntervalError, MAX_STATISTICS_INTERVAL, OptionsError};
pub(crate) use queues::Action;
pub(crate) use queues::contents::Contents;
pub(crate) use saved::{RestoreError, SavedBalloon};
pub use simulated::{SimulatedDevice, SimulatedStatistics};
pub(crate) use statistics::Sample;
#[cfg(test)]
pub(crate) use statistics::Statistics;
pub use target::reserve_bytes;
pub(crate) use target::{Lease, MAX_LEASE, Stop, Target, TargetRefused};
