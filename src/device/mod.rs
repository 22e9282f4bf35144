//! The virtio-balloon device (virtio 1.3, section 5.5): what the guest sees of it.
//!
//! Nothing here knows a file descriptor or makes a system call. What a queue asks for is handed to
//! a closure, so that a test can put a recorder in the place of the host's memory.

mod balloon;
pub mod chain;
mod config_space;
pub mod features;
mod options;
mod reporting;

pub use balloon::{Balloon, Outcome, RestoreError, SavedBalloon};
pub use config_space::{CONFIG_SPACE_SIZE, ConfigSpace};
pub use features::QueueRole;
pub use options::DeviceOptions;
