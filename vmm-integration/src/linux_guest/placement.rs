// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tasks of the guest that fault memory in under a cpuset and memory policies.

use std::time::Duration;

use anyhow::{Result, bail};
use guest_agent::placement::{PlacementPlan, PlacementReport};
use guest_agent::{Command, Reply};

use super::AgentClient;

/// For a command that only asks or starts something, in a guest that is short of memory.
const QUICK: Duration = Duration::from_secs(60);

impl AgentClient {
    /// Begins a plan in the guest and returns while it runs.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when one is running, and when the kernel has no cpusets.
    pub fn start_placement(&self, plan: &PlacementPlan) -> Result<()> {
        match self.call(Command::StartPlacement { plan: plan.clone() }, QUICK)? {
            Reply::Done => Ok(()),
            other => bail!("unexpected answer from the guest agent (got {other:?})"),
        }
    }

    /// Returns the state of the plan. With `stop` its tasks end.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when there was none.
    pub fn placement(&self, stop: bool) -> Result<PlacementReport> {
        match self.call(Command::Placement { stop }, QUICK)? {
            Reply::Placement(report) => Ok(report),
            other => bail!("unexpected answer from the guest agent (got {other:?})"),
        }
    }
}
