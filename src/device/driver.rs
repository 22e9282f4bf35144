// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How far the guest's driver has come in the session of the moment.
//!
//! The daemon sees three things: that features were acked, that queues run, and that reports come.
//! A VMM acks features when the guest's driver has said DRIVER_OK, so that a driver that fails
//! before leaves no trace at all.

use strum::{IntoStaticStr, VariantArray};

use super::QueueRole;
use super::features::{Feature, Features, NUM_QUEUES, role};

/// Whether there is a driver, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[cfg_attr(test, derive(strum::EnumMessage))]
#[strum(serialize_all = "snake_case")]
pub enum DriverState {
    /// No VMM is connected.
    NoFrontend,
    /// A VMM is connected, and no driver has acked features in this session.
    NoDriver,
    /// Features were acked in this session, and no queue runs: the guest is paused or in a reset,
    /// or its driver was unloaded.
    Stopped,
    /// Queues run, and none of them carries reports: reporting was not acked, or its queue was not
    /// set up.
    NotReporting,
    /// The reporting queue runs, and no report has come yet.
    NoReportYet,
    /// Reports come.
    Reporting,
}

impl DriverState {
    /// The name in JSON and in metrics: the variant's in snake case.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// What the usual causes are of a state in which nothing is reported; `None` where there is
    /// nothing to look into. `reporting` says whether reporting is offered.
    pub fn hint(self, reporting: bool) -> Option<&'static str> {
        match self {
            Self::NoFrontend => Some(
                "no VMM is connected. QEMU connects once: a guest whose daemon has ended, or was \
                 replaced, has no balloon until QEMU is started again",
            ),
            Self::NoDriver => Some(
                "no driver has started in this guest yet. If it has booted and virtio_balloon is \
                 loaded, its probe failed: expected no other balloon (libvirt adds one without \
                 <memballoon model='none'/>), num_vqs=5, vq_size of at least 32, virtio-id 5",
            ),
            Self::Stopped => Some("the guest is paused or in a reset, or its driver was unloaded"),
            Self::NotReporting if reporting => Some(
                "free page reporting (bit 5) was not acked, or its queue was not set up: the \
                 guest's kernel does not know it, or the VMM masks the device's feature bits, as \
                 cloud-hypervisor does without a patch",
            ),
            Self::NotReporting | Self::NoReportYet | Self::Reporting => None,
        }
    }

    /// Whether a driver serves its queues, so that it can be asked for something.
    pub fn runs(self) -> bool {
        matches!(self, Self::NotReporting | Self::NoReportYet | Self::Reporting)
    }
}

/// What was seen of the driver in this session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Features that were acked in this session, or came with the state of a device that migrated
    /// here.
    pub(super) acked: Option<Features>,
    /// A queue has run since.
    pub(super) ran: bool,
    /// A report has come since its queue began.
    pub(super) reported: bool,
}

impl Seen {
    /// Whether the features are those of the driver that is there: it has acked them, and its queues
    /// run or are still to start. Where they have stopped it may be another driver that speaks.
    pub(super) fn is_current(&self, any_queue_runs: bool) -> bool {
        self.acked.is_some() && (any_queue_runs || !self.ran)
    }

    pub(super) fn state(&self, connected: bool, running: [bool; NUM_QUEUES]) -> DriverState {
        let Some(acked) = self.acked.filter(|_| connected) else {
            return if connected { DriverState::NoDriver } else { DriverState::NoFrontend };
        };
        if !running.contains(&true) {
            return DriverState::Stopped;
        }
        let carries_reports =
            |index: usize| running[index] && role(acked, index) == Some(QueueRole::Reporting);
        if !acked.has(Feature::PageReporting) || !(0..NUM_QUEUES).any(carries_reports) {
            return DriverState::NotReporting;
        }
        if self.reported { DriverState::Reporting } else { DriverState::NoReportYet }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORTING: Features = Features(Feature::PageReporting.mask());
    const NONE: [bool; NUM_QUEUES] = [false; NUM_QUEUES];
    const TWO: [bool; NUM_QUEUES] = [true, true, false, false, false];
    const THREE: [bool; NUM_QUEUES] = [true, true, true, false, false];

    #[test]
    fn a_driver_passes_every_state() {
        let mut seen = Seen::default();
        assert_eq!(seen.state(false, NONE), DriverState::NoFrontend);
        assert_eq!(seen.state(true, NONE), DriverState::NoDriver);
        seen.acked = Some(REPORTING);
        assert_eq!(seen.state(true, NONE), DriverState::Stopped);
        assert_eq!(seen.state(true, TWO), DriverState::NotReporting);
        assert_eq!(seen.state(true, THREE), DriverState::NoReportYet);
        seen.reported = true;
        assert_eq!(seen.state(true, THREE), DriverState::Reporting);
        assert_eq!(seen.state(false, THREE), DriverState::NoFrontend);
        seen.acked = Some(Features(0));
        assert_eq!(seen.state(true, THREE), DriverState::NotReporting);
    }

    #[test]
    fn features_are_current_until_their_queues_stop() {
        let mut seen = Seen::default();
        assert!(!seen.is_current(false) && !seen.is_current(true));
        seen.acked = Some(REPORTING);
        assert!(seen.is_current(false) && seen.is_current(true));
        seen.ran = true;
        assert!(seen.is_current(true) && !seen.is_current(false));
    }

    #[test]
    fn every_state_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            DriverState::VARIANTS.iter().map(|state| state.name()).collect();
        assert_eq!(names.len(), DriverState::VARIANTS.len());
        let running: Vec<_> =
            DriverState::VARIANTS.iter().copied().filter(|state| state.runs()).collect();
        assert_eq!(running.len(), 3);
    }
}
