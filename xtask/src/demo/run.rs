// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results of one run of the demo.

use std::fmt;

use serde::Serialize;
use vmm_integration::measure::host::Sample;

/// The device that reclaims the guest's free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Device {
    /// This project's, over vhost-user.
    Daemon,
    /// QEMU's own virtio-balloon.
    Qemu,
    /// No device: the guest cannot report free memory.
    None,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "vhost-device-balloon",
            Self::Qemu => "QEMU's own device",
            Self::None => "no balloon device",
        })
    }
}

/// The results of one run.
#[derive(Serialize)]
pub(super) struct Run {
    pub(super) device: Device,
    /// Describes the guest in one sentence.
    pub(super) guest: String,
    pub(super) memory_bytes: u64,
    pub(super) rounds: Vec<Round>,
    /// Descriptor chains of the reporting queue; QEMU does not count them.
    pub(super) reports: Option<u64>,
    pub(super) ranges: u64,
    pub(super) discard_calls: u64,
    pub(super) verified_bytes: u64,
    pub(super) lost_bytes: u64,
    pub(super) curve: Vec<Sample>,
}

/// One round of filling and freeing.
#[derive(Serialize)]
pub(super) struct Round {
    pub(super) freed_bytes: u64,
    /// The decrease of the guest's resident memory after the free.
    pub(super) returned_bytes: u64,
    /// The time from the free until the host reclaimed 90 %; none if it never did.
    pub(super) seconds_to_90: Option<f64>,
    /// Reporting passes of the guest in that time.
    pub(super) passes: usize,
}

impl Run {
    pub(super) fn freed_bytes(&self) -> u64 {
        self.rounds.iter().map(|round| round.freed_bytes).sum()
    }

    pub(super) fn returned_bytes(&self) -> u64 {
        self.rounds.iter().map(|round| round.returned_bytes).sum()
    }

    pub(super) fn returned_percent(&self) -> f64 {
        100.0 * ratio(self.returned_bytes(), self.freed_bytes())
    }

    /// The reason why the run counts as failed, if it does.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let reclaimed = self.rounds.iter().all(|round| round.seconds_to_90.is_some());
        if self.lost_bytes > 0 {
            Some("memory in use was lost")
        } else if !reclaimed && self.device != Device::None {
            Some("the host reclaimed less than 90 % of the freed memory")
        } else {
            None
        }
    }
}

/// `part` divided by `whole`, zero if `whole` is zero.
#[allow(clippy::cast_precision_loss)] // for display
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Bytes as MiB, for an axis.
#[allow(clippy::cast_precision_loss)] // for display
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
