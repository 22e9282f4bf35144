// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a control client is shown: the shape of the JSON, for the daemon and for its client.

use std::collections::BTreeMap;
use std::time::Instant;
use std::{env, process};

use serde::{Deserialize, Serialize};
use strum::VariantArray;

#[cfg(test)]
use crate::device::DriverState;
use crate::device::features::{Feature, NUM_QUEUES};
use crate::device::{HintingState, Target};
use crate::discard::{Backing, Cause};
use crate::hand_over::WENT_BACK;
use crate::logging::LogLevel;
use crate::state::State;
use crate::vhost_user::Refused;

/// The state of the daemon, the VMM and the guest driver.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatusView {
    /// Name of the VM, as the operator gave it; `null` without one.
    pub name: Option<String>,
    /// Version of the daemon.
    pub version: String,
    /// ID of its process.
    pub pid: u32,
    /// Whether the program of an upgrade did not serve, and this one goes on in its place.
    pub went_back: bool,
    /// Whether a VMM is connected.
    pub connected: bool,
    /// Number of other VMMs that wait until that one has gone.
    pub waiting_connections: usize,
    /// How far the guest's driver has come.
    #[cfg_attr(test, schemars(extend("examples" = DriverState::VARIANTS.iter().map(|state| state.name()).collect::<Vec<_>>())))]
    pub driver: String,
    /// What to look into, if nothing is reported; `null` otherwise.
    pub driver_hint: Option<String>,
    /// Why the device of this VMM, or of the last one, is not served; `null` if nothing was refused.
    pub refused: Option<RefusedView>,
    /// Features that the device offers.
    pub offered_features: Vec<String>,
    /// Features that the guest's driver has acked in this session; `null` if there is no driver.
    pub acked_features: Option<Vec<String>>,
    /// The queues; none before features are acked in this session.
    pub queues: Vec<QueueView>,
    /// Number of queues for which the VMM has sent a call descriptor. QEMU does so for each queue of
    /// its device, before the guest boots.
    pub called_queues: usize,
    /// Bytes that the operator wants in the balloon: those of a lease, or of the base target.
    pub target_bytes: u64,
    /// Bytes that the operator wants in it when no lease holds.
    pub base_target_bytes: u64,
    /// Seconds until the lease is over, unless it is renewed; `null` without one.
    pub lease_left_seconds: Option<f64>,
    /// Why the guest reads a target of 0 instead; `null` if it reads that one.
    pub target_refused: Option<String>,
    /// Bytes that a reclaim in progress wants in the balloon instead; `null` without one.
    pub reclaim_target_bytes: Option<u64>,
    /// Bytes that the guest says are in the balloon; `null` if its driver has not said so to this daemon, or
    /// there is none.
    pub actual_bytes: Option<u64>,
    /// Bytes in the balloon that the host did not get: the huge pages that they lie in are not all in
    /// the balloon.
    pub collecting_bytes: u64,
    /// Seconds between two polls of the statistics; 0 for never.
    pub statistics_interval_seconds: f64,
    /// State of free page hinting.
    pub hinting: HintingView,
    /// Why discarding is paused.
    #[serde(flatten)]
    pub paused: PausedView,
    /// Memory that is pinned.
    pub pins: Vec<PinView>,
    /// Bytes of memory that the guest's own statistics tell of, without those in the balloon;
    /// `null` if it tells none.
    pub guest_total_bytes: Option<u64>,
    /// Memory that the VMM has announced; `null` if there is none yet. It may hold memory that is
    /// not plugged.
    pub memory: Option<MemoryView>,
    /// The least important messages that are logged.
    pub log_level: LogLevel,
}

impl StatusView {
    /// The status now, with what is known of [`MemoryView::resident_bytes`].
    pub(crate) fn of(state: &State, resident_bytes: Option<u64>) -> Self {
        let balloon = &state.balloon;
        let (driver, running) = (state.driver(), state.rings.running());
        let target = balloon.target();
        let queue = |index: usize| {
            balloon.session_features()?;
            let role = balloon.negotiated_role(index).map_or("none", Into::into).to_owned();
            Some(QueueView { index, role, runs: running[index] })
        };
        Self {
            name: state.vm_name().map(str::to_owned),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            went_back: env::var_os(WENT_BACK).is_some(),
            connected: state.is_connected(),
            waiting_connections: state.waiting_connections(),
            driver: driver.name().to_owned(),
            driver_hint: driver.hint(balloon.options().reporting).map(str::to_owned),
            refused: state.refused().map(RefusedView::from),
            offered_features: Feature::names(balloon.offered()),
            acked_features: balloon.session_features().map(Feature::names),
            queues: (0..NUM_QUEUES).filter_map(queue).collect(),
            called_queues: state.rings.called(),
            target_bytes: target.bytes(),
            base_target_bytes: target.base_bytes,
            lease_left_seconds: left_seconds(&target),
            target_refused: balloon.refused_target().map(|refused| refused.to_string()),
            reclaim_target_bytes: balloon.squeeze_bytes(),
            actual_bytes: state.actual_bytes(),
            collecting_bytes: state.counters.collecting(),
            statistics_interval_seconds: balloon.statistics_interval().as_secs_f64(),
            hinting: HintingView::of(state),
            paused: PausedView::of(state),
            pins: PinsView::of(state).pins,
            guest_total_bytes: state.statistics().and_then(|sample| sample.values.total_bytes),
            memory: MemoryView::of(state, resident_bytes),
            log_level: LogLevel::now(),
        }
    }
}

/// Seconds until the target's lease is over; none without one.
pub(crate) fn left_seconds(target: &Target) -> Option<f64> {
    let lease = target.lease?;
    Some(lease.until.saturating_duration_since(Instant::now()).as_secs_f64())
}

/// A message of a VMM that was refused.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RefusedView {
    /// What was wrong, as a name.
    pub cause: String,
    /// What was wrong and what to do, in words.
    pub text: String,
}

impl From<Refused> for RefusedView {
    fn from(Refused { cause, text }: Refused) -> Self {
        Self { cause: cause.to_owned(), text }
    }
}

/// A virtqueue of the device.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QueueView {
    /// Index of the queue.
    pub index: usize,
    /// What it carries; `none` where no negotiated feature brings it.
    pub role: String,
    /// Whether the guest's driver has set it up and it is served.
    pub runs: bool,
}

/// Why discarding is paused; each cause holds and is lifted on its own.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PausedView {
    /// The causes that hold, among `operator`, `migration`, `postcopy` and `parked`.
    pub paused_by: Vec<String>,
}

impl PausedView {
    /// The causes now.
    pub(crate) fn of(state: &State) -> Self {
        let holds = Cause::VARIANTS.iter().filter(|cause| state.inhibit.holds(**cause));
        Self { paused_by: holds.map(|cause| cause.name().to_owned()).collect() }
    }
}

/// Memory that stays, whatever the guest reports.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PinView {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// How often it was pinned and not unpinned.
    pub times: u32,
}

/// The memory that is pinned.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PinsView {
    /// The pins, by address.
    pub pins: Vec<PinView>,
}

impl PinsView {
    /// The pins now.
    pub(crate) fn of(state: &State) -> Self {
        let pin = |pin: crate::discard::Pin| PinView {
            address: pin.range.start(),
            bytes: pin.range.len(),
            times: pin.count,
        };
        Self { pins: state.inhibit.pins().into_iter().map(pin).collect() }
    }
}

/// State of free page hinting.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HintingView {
    /// State of the round: `stopped`, `running` or `done`.
    pub state: String,
    /// ID of the round that the device asks for; 0 to stop, 1 for done.
    pub requested_id: u32,
    /// ID that the driver sent last; `null` if it sent none.
    pub driver_id: Option<u32>,
    /// Number of ranges that the guest hinted in this round.
    pub ranges: u64,
    /// Bytes in those ranges.
    pub bytes: u64,
}

impl HintingView {
    /// The last round.
    pub(crate) fn of(state: &State) -> Self {
        let status = state.balloon.hinting();
        let name = match status.state {
            HintingState::Stopped => "stopped",
            HintingState::Running => "running",
            HintingState::Done => "done",
        };
        Self {
            state: name.to_owned(),
            requested_id: status.requested_id,
            driver_id: status.driver_id,
            ranges: status.ranges,
            bytes: status.bytes,
        }
    }
}

/// The guest's memory and what backs it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryView {
    /// Bytes in all regions.
    pub bytes: u64,
    /// Bytes of the files behind the regions that are resident, each file counted once; `null` if the
    /// kernel would not say, or not in time.
    pub resident_bytes: Option<u64>,
    /// The regions, by address.
    pub regions: Vec<Backing>,
}

impl MemoryView {
    /// The memory of the frontend that is connected.
    pub(crate) fn of(state: &State, resident_bytes: Option<u64>) -> Option<Self> {
        let regions = state.backings()?;
        let bytes = regions.iter().fold(0, |bytes: u64, region| bytes.saturating_add(region.bytes));
        Some(Self { bytes, resident_bytes, regions })
    }
}

/// The last memory statistics of the guest.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatisticsView {
    /// Seconds between two polls; 0 for never.
    pub interval_seconds: f64,
    /// The last sample; `null` if the guest has sent none.
    pub sample: Option<SampleView>,
}

/// What the guest says of how it uses its memory; not verified.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SampleView {
    /// Seconds since the sample came.
    pub age_seconds: f64,
    /// Bytes that the driver said were in the balloon when it came; `null` if it had not said so.
    pub balloon_bytes: Option<u64>,
    /// Each statistic (virtio 1.3, 5.5.6.4): bytes if its name ends in `_bytes`, otherwise how often
    /// it happened; `null` if the guest does not send it.
    pub values: BTreeMap<String, Option<u64>>,
}

impl StatisticsView {
    /// The statistics now.
    pub(crate) fn of(state: &State) -> Self {
        let sample = state.statistics().map(|sample| SampleView {
            age_seconds: sample.age().as_secs_f64(),
            balloon_bytes: sample.balloon_bytes,
            values: sample
                .values
                .named()
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
        });
        let interval_seconds = state.balloon.statistics_interval().as_secs_f64();
        Self { interval_seconds, sample }
    }
}
