// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What free memory of a real guest is reported to.

use anyhow::Result;
use vmm_integration::vmm::qemu::{Balloon, LinuxGuest};

use crate::bench::daemon::CountedDaemon;
use crate::experiment::Context;
use crate::faults::device::FaultyDevice;
use crate::faults::plan::{Fault, FaultKind, FaultPlan};

const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";
/// What every kernel without the parameter does (`PAGE_REPORTING_DELAY`).
const FIXED_DELAY_MS: u64 = 2000;

/// What free memory is reported to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Reporter {
    /// Nothing: the driver is not loaded.
    #[strum(serialize = "unreported")]
    None,
    /// The daemon.
    #[strum(serialize = "reported")]
    Daemon,
    /// A device that acknowledges late.
    Late,
}

/// The device of a [`Reporter`].
pub(super) enum Device {
    /// There is none.
    None,
    /// The daemon's.
    Daemon(CountedDaemon),
    /// One that acknowledges late.
    Late(FaultyDevice),
}

impl Device {
    /// Starts it; a late one acknowledges after `late_ms`.
    pub(super) fn start(reporter: Reporter, late_ms: u64, context: &Context<'_>) -> Result<Self> {
        Ok(match reporter {
            Reporter::None => Self::None,
            Reporter::Daemon => Self::Daemon(CountedDaemon::start(context, Vec::new())?),
            Reporter::Late => {
                let late = Fault { times: 0, ms: Some(late_ms), ..Fault::new(FaultKind::DelayAck) };
                Self::Late(FaultyDevice::start(FaultPlan::new(vec![late])?)?)
            }
        })
    }

    /// For the guest.
    pub(super) fn balloon(&self) -> Balloon {
        let socket = match self {
            Self::None => return Balloon::None,
            Self::Daemon(daemon) => daemon.socket(),
            Self::Late(device) => device.socket(),
        };
        Balloon::VhostUser { socket }
    }

    /// Reports so far.
    pub(super) fn reports(&self) -> Result<u64> {
        match self {
            Self::None => Ok(0),
            Self::Daemon(daemon) => daemon.reports(),
            Self::Late(device) => Ok(device.served().chains),
        }
    }

    /// Bytes in them that went back to the host.
    pub(super) fn reported_bytes(&self) -> Result<u64> {
        match self {
            Self::None => Ok(0),
            Self::Daemon(daemon) => Ok(daemon.discards()?.bytes),
            Self::Late(device) => Ok(device.served().discarded_bytes),
        }
    }

    /// Ends it.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Daemon(daemon) => daemon.finish(),
            Self::None | Self::Late(_) => Ok(()),
        }
    }
}

/// Loads the driver, with a short delay before a report if the kernel has that parameter; returns the
/// delay in milliseconds.
pub(super) fn begin_to_report(guest: &LinuxGuest, delay_ms: u64) -> Result<u64> {
    guest.load_balloon_driver("")?;
    if guest.agent().read_file(DELAY).is_err() {
        return Ok(FIXED_DELAY_MS);
    }
    guest.agent().write_file(DELAY, &delay_ms.to_string())?;
    Ok(delay_ms)
}
