// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What hostd shows at `GET /v1/host`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The host and its guests, as hostd saw them last.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct HostView {
    /// Version of hostd.
    pub version: String,
    /// ID of its process.
    pub pid: u32,
    /// What it does: `no_policy`, `relaxed` (no guest is asked for anything) or `engaged`.
    pub state: String,
    /// Whether decisions are shown and not sent.
    pub dry_run: bool,
    /// The policy; `null` without one.
    pub policy: Option<PolicyView>,
    /// Bytes of memory of the host, or the limit of its control group.
    pub total_bytes: Option<u64>,
    /// Bytes of it that are available.
    pub available_bytes: Option<u64>,
    /// Share of the last 10 seconds, in percent, in which some task waited for memory (PSI `some avg10`);
    /// `null` if the kernel does not say.
    pub pressure_percent: Option<f64>,
    /// Times that the guests were asked and the policy decided.
    pub rounds: u64,
    /// Targets that were set, by reason.
    pub orders: BTreeMap<String, u64>,
    /// Targets that a daemon refused or did not answer.
    pub order_failures: u64,
    /// The guests.
    pub guests: Vec<GuestView>,
}

/// The file of the policy.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// Its path.
    pub file: String,
    /// Why it was refused when it was read last, so that the policy before it holds; `null` if it was not.
    pub refused: Option<String>,
}

/// A guest of the host.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct GuestView {
    /// Name of the VM.
    pub name: String,
    /// Control socket of its daemon.
    pub socket: String,
    /// Why there is no new sample; `null` if there is one.
    pub error: Option<String>,
    /// Seconds since its last sample; `null` if none came, or none was asked for.
    pub sample_age_seconds: Option<f64>,
    /// Bytes of memory that it has without a balloon.
    pub memory_bytes: Option<u64>,
    /// Bytes that its own target leaves it: that is what it has without a lease.
    pub base_bytes: Option<u64>,
    /// Bytes that the policy never goes below.
    pub floor_bytes: Option<u64>,
    /// Bytes that it has used at most lately.
    pub working_set_bytes: Option<u64>,
    /// Bytes that its balloon has.
    pub balloon_bytes: Option<u64>,
    /// Bytes that hostd leaves it by a lease; `null` without one.
    pub leave_bytes: Option<u64>,
    /// Seconds until that lease is over.
    pub lease_left_seconds: Option<f64>,
    /// Why it has what it has, as a name; `null` before the policy has decided anything.
    pub why: Option<String>,
}
