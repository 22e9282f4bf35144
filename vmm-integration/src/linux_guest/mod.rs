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

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Connects to the agent's port of a guest that another program has started, at the socket that this
/// program made of it, and waits until the agent answers.
///
/// # Errors
/// When there is no such socket, or no answer within `timeout`.
pub fn connect(socket: &Path, timeout: Duration) -> Result<AgentClient> {
    let connection = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    let agent = AgentClient::new(connection)?;
    agent.hello_within(timeout)?;
    Ok(agent)
}
