// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes of the guest that fault a file of hugetlbfs in.

use std::time::Duration;

use anyhow::{Result, bail};
use guest_agent::hugetlb::{StormPlan, StormReport};
use guest_agent::{Command, Reply};

use super::AgentClient;

/// For the processes to start and for the report, in an emulated guest on a busy machine.
const MORE: Duration = Duration::from_secs(240);

impl AgentClient {
    /// Runs a plan to its end.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when one is running, and when the kernel has no hugetlbfs. What a check
    /// finds is no error here: see [`StormReport::faults_found`].
    pub fn storm(&self, plan: &StormPlan) -> Result<StormReport> {
        let time = Duration::from_millis(plan.milliseconds.saturating_add(plan.patience_ms)) + MORE;
        match self.call(Command::Storm { plan: plan.clone() }, time)? {
            Reply::Storm(report) => Ok(report),
            other => bail!("unexpected answer from the guest agent (got {other:?})"),
        }
    }
}
