// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio-balloon device (virtio 1.3, section 5.5): what the guest sees of it.
//!
//! Nothing here knows a file descriptor or makes a system call. A chain is collected into a
//! [`Request`], which names ranges and what is done with them; the `discard` room does it.

mod balloon;
pub mod chain;
mod config_space;
mod driver;
pub mod features;
mod hinting;
mod log;
mod options;
mod queues;
mod saved;
mod statistics;
mod target;

pub use balloon::Balloon;
pub use chain::Outcome;
pub use config_space::{
    BALLOON_PAGE_SIZE, CONFIG_SPACE_SIZE, ConfigSpace, MAX_BALLOON_BYTES, TargetError,
};
pub use driver::DriverState;
pub use features::QueueRole;
pub use hinting::{HintingError, HintingState, HintingStatus};
pub use options::{
    DeviceOptions, IntervalError, MAX_STATISTICS_INTERVAL, MIN_STATISTICS_INTERVAL, OptionsError,
};
pub use queues::{Action, Request};
pub use saved::{RestoreError, SavedBalloon};
pub use statistics::{Sample, Statistics};
pub use target::{TargetRefused, largest_target, reserve};
