// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The agent's answers as results of a [`crate::guest::Guest`].

use std::time::Duration;

use anyhow::Result;
use guest_agent::Verified;
use guest_agent::faulting::{self, FaultingPlan};

use super::AgentClient;
use crate::guest::{Contents, Faulted};

/// Size in bytes of the words that the agent compares.
const WORD_BYTES: u64 = 8;

impl From<Verified> for Contents {
    fn from(verified: Verified) -> Self {
        Self {
            checked_bytes: verified.checked_bytes,
            lost_bytes: verified.mismatches * WORD_BYTES,
            first: verified.first.map(|first| first.to_string()),
        }
    }
}

/// Runs programs that fault memory in. `cpu_time` returns the CPU time of the guest so far.
pub(crate) fn fault(
    agent: &AgentClient,
    plan: FaultingPlan,
    cpu_time: impl Fn() -> Result<Duration>,
) -> Result<Faulted> {
    let before = cpu_time()?;
    let faulting::Faulted { pages, nanoseconds } = agent.fault(plan)?;
    let cpu = cpu_time()?.saturating_sub(before);
    Ok(Faulted { pages, time: Duration::from_nanos(nanoseconds), cpu })
}
