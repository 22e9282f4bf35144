// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The Linux guest: an unmodified kernel with our agent as its init.

mod agent;
pub mod debug_kernel;
pub(crate) mod initramfs;
pub mod isolation;
mod kernel;
pub mod modules;
mod placement;
mod results;
mod splats;
mod storm;
mod victim;

pub use agent::AgentClient;
pub(crate) use agent::BALLOON_DRIVER;
pub use kernel::Kernel;
pub(crate) use results::fault;
pub use splats::splats;
