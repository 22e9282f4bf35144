// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process of the guest for its OOM killer.

use std::time::Duration;

use anyhow::{Result, bail};
use guest_agent::victim::{VictimPlan, VictimReport};
use guest_agent::{Command, Reply};

use super::AgentClient;

/// How long an emulated CPU may take to fill memory, or the kernel to free it.
const LONG: Duration = Duration::from_secs(120);

impl AgentClient {
    /// Starts the process and returns when its memory is in use.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when there is one, and when the guest has not what the plan needs.
    pub fn start_victim(&self, plan: &VictimPlan) -> Result<()> {
        match self.call(Command::StartVictim { plan: plan.clone() }, LONG)? {
            Reply::Done => Ok(()),
            other => bail!("unexpected answer from the guest agent (got {other:?})"),
        }
    }

    /// Returns how the process stands. With `release` it ends first.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when there was none.
    pub fn victim(&self, release: bool) -> Result<VictimReport> {
        match self.call(Command::Victim { release }, LONG)? {
            Reply::Victim(report) => Ok(report),
            other => bail!("unexpected answer from the guest agent (got {other:?})"),
        }
    }
}
