// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a step decides, and why.

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

/// What becomes of one guest until the next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The VM's name.
    pub name: String,
    /// What to do.
    pub action: Action,
    /// Why.
    pub why: Why,
    /// Bytes that the guest keeps in any case; `None` if nothing fresh is known of it.
    pub floor_bytes: Option<u64>,
    /// Bytes that it has used at most lately; `None` if nothing fresh is known of it.
    pub working_set_bytes: Option<u64>,
}

/// What to do with a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing: it has no lease and gets none, or its lease is to run out.
    Nothing,
    /// A lease of so large a balloon, or its renewal.
    Lease {
        /// Bytes that the balloon takes, in whole pages of 4 KiB.
        balloon_bytes: u64,
    },
    /// End its lease: it has its memory back.
    Release,
}

/// Why a guest gets what it gets. The name in JSON, metrics and documents is the variant's in snake case.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq, Serialize, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Why {
    /// It has all of its memory, and the host needs none of it.
    Whole,
    /// Its rules leave it out of the policy.
    Excluded,
    /// Its driver does not deflate before the OOM killer runs, and its rules ask for that.
    NoDeflateOnOom,
    /// No fresh sample, or one that contradicts itself.
    NoSample,
    /// No VMM is connected, or it has not said how much memory the guest has.
    NoGuest,
    /// Too few samples yet to know how much it uses.
    Unknown,
    /// Nothing changes: the lease is renewed.
    Held,
    /// It was taken from, since the host lacks memory.
    Taken,
    /// It is at its floor: the host lacks memory, and it has none to spare.
    AtFloor,
    /// Its balloon has not followed the last step.
    Inflating,
    /// It uses more, and keeps its floor.
    Grown,
    /// It was given back to: the host can hold it.
    Given,
    /// Its OOM killer ran.
    OomKill,
    /// It swapped more than a MiB out since the last sample.
    SwapOut,
    /// It swapped more than a MiB in since the last sample.
    SwapIn,
    /// More than 256 of its page faults waited for a disk since the last sample.
    MajorFaults,
    /// Less than half of its reserve is available to it.
    Available,
    /// It took memory out of the balloon.
    Deflated,
    /// It was under pressure lately, and nothing is taken yet.
    Recovers,
    /// It was given back to lately, and is taken from only if the host has less than half of its reserve.
    Settles,
}

impl Why {
    /// The name in JSON and in metrics.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether it is a sign of guest pressure.
    pub fn is_pressure(self) -> bool {
        use Why::{Available, Deflated, MajorFaults, OomKill, SwapIn, SwapOut};
        matches!(self, OomKill | SwapOut | SwapIn | MajorFaults | Available | Deflated)
    }
}
