// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as it travels with a migrating guest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::options::IntervalError;

/// What a guest has made of its device, and what it was told by it: all that another daemon needs
/// to go on under the same driver. Plain data; whoever writes it somewhere adds a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBalloon {
    /// The features that the driver has acked; none if there is no driver.
    pub acked_features: Option<u64>,
    /// Pages of 4 KiB that are wanted in the balloon.
    pub num_pages: u32,
    /// Pages of 4 KiB that the driver says are in it; none if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<u32>,
    /// Which round of hinting was wanted.
    pub free_page_hint_cmd_id: u32,
    /// Which ID the next round is to have: the driver knows those before it.
    pub next_hint_cmd_id: u32,
    /// What the driver fills its free pages with; none if that is not known.
    pub poison_val: Option<u32>,
    /// How often statistics are polled.
    pub statistics_interval: Duration,
}

/// Why a device cannot go on from what another one saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Started with other options, the other daemon offered more.
    #[error(
        "the guest's driver has acked features {acked:#x} and this device does not offer \
         {missing:#x} of them: start the daemon with the options that the other one had"
    )]
    NotOffered {
        /// What the driver acked.
        acked: u64,
        /// What of it is not offered.
        missing: u64,
    },
    /// The interval of the statistics.
    #[error("what was saved is damaged")]
    Interval(#[from] IntervalError),
}
