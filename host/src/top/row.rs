// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest as a row: what the last two looks at its daemon say.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use vhost_device_balloon::operator::{CountersView, SampleView, StatusView};

use crate::sockets::stem;

/// What a daemon answered at one time.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// When the counters came.
    pub(super) at: Instant,
    pub(super) status: StatusView,
    pub(super) counters: CountersView,
    /// The guest's last statistics; none if it sends none.
    pub(super) sample: Option<SampleView>,
}

impl Look {
    fn value(&self, name: &str) -> Option<u64> {
        self.sample.as_ref()?.values.get(name).copied().flatten()
    }

    fn reports(&self) -> u64 {
        self.counters.chains.get("reporting").copied().unwrap_or(0)
    }
}

/// Signs of guest pressure between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Pressure {
    /// Page faults that waited for I/O.
    pub(super) major_faults: u64,
    /// Bytes that the guest swapped in.
    pub(super) swapped_in_bytes: u64,
    /// Bytes that the guest swapped out.
    pub(super) swapped_out_bytes: u64,
    /// Processes that the guest's OOM killer ended.
    pub(super) oom_kills: u64,
}

/// A guest and its daemon. What is not known is `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Row {
    /// Name of the VM: the daemon's `--name`, or the socket's file.
    pub(super) name: String,
    /// The daemon's control socket.
    pub(super) control_socket: PathBuf,
    /// Why the last look failed; the other values are of the one before.
    pub(super) error: Option<String>,
    /// State of the guest's driver.
    pub(super) driver: Option<String>,
    /// What to look into, if nothing is reported.
    pub(super) driver_hint: Option<String>,
    /// Memory that the VMM has announced.
    pub(super) memory_bytes: Option<u64>,
    /// Memory of the guest's files that the host holds.
    pub(super) resident_bytes: Option<u64>,
    /// Memory that is wanted in the balloon.
    pub(super) target_bytes: Option<u64>,
    /// The same when no lease holds.
    pub(super) base_target_bytes: Option<u64>,
    /// Seconds until the target's lease is over.
    pub(super) lease_left_seconds: Option<f64>,
    /// Why the guest reads a target of 0 instead.
    pub(super) target_refused: Option<String>,
    /// Memory that a reclaim in progress wants in the balloon instead.
    pub(super) reclaim_target_bytes: Option<u64>,
    /// Memory in the balloon, as the guest says.
    pub(super) actual_bytes: Option<u64>,
    /// Memory in use that the guest cannot drop: its total less what is available.
    pub(super) used_bytes: Option<u64>,
    /// Memory that the guest can use without swapping.
    pub(super) available_bytes: Option<u64>,
    /// Seconds since the guest's statistics came.
    pub(super) statistics_age_seconds: Option<f64>,
    /// Memory returned to the host since the counters were reset.
    pub(super) reclaimed_bytes: Option<u64>,
    /// The same a second, since the last look.
    pub(super) reclaimed_bytes_per_second: Option<f64>,
    /// Reports of the guest a second, since the last look.
    pub(super) reports_per_second: Option<f64>,
    /// Signs of pressure since the last look.
    pub(super) pressure: Option<Pressure>,
    /// Why discarding is paused; empty if it is not.
    pub(super) paused_by: Vec<String>,
}

impl Row {
    /// A guest of which only the socket is known.
    pub(super) fn new(socket: &Path) -> Self {
        Self { name: stem(socket), control_socket: socket.to_owned(), ..Self::default() }
    }

    /// The row after `look`, with rates since the look `before`.
    pub(super) fn of(socket: &Path, look: &Look, before: Option<&Look>) -> Self {
        let status = &look.status;
        let (total, available) = (look.value("total_bytes"), look.value("available_bytes"));
        let rate = |value: fn(&Look) -> u64| {
            let before = before?;
            let seconds = look.at.saturating_duration_since(before.at).as_secs_f64();
            // Counters that were reset, or those of another daemon, say nothing.
            let more = value(look).checked_sub(value(before))?;
            (seconds > 0.0).then(|| per_second(more, seconds))
        };
        let memory = status.memory.as_ref();
        Self {
            name: status.name.clone().unwrap_or_else(|| stem(socket)),
            control_socket: socket.to_owned(),
            error: None,
            driver: Some(status.driver.clone()),
            driver_hint: status.driver_hint.clone(),
            memory_bytes: memory.map(|memory| memory.bytes),
            resident_bytes: memory.and_then(|memory| memory.resident_bytes),
            target_bytes: Some(status.target_bytes),
            base_target_bytes: Some(status.base_target_bytes),
            lease_left_seconds: status.lease_left_seconds,
            target_refused: status.target_refused.clone(),
            reclaim_target_bytes: status.reclaim_target_bytes,
            actual_bytes: status.actual_bytes,
            used_bytes: total.zip(available).and_then(|(total, free)| total.checked_sub(free)),
            available_bytes: available,
            statistics_age_seconds: look.sample.as_ref().map(|sample| sample.age_seconds),
            reclaimed_bytes: Some(look.counters.discarded_bytes),
            reclaimed_bytes_per_second: rate(|look| look.counters.discarded_bytes),
            reports_per_second: rate(Look::reports),
            pressure: before.and_then(|before| pressure(look, before)),
            paused_by: status.paused.paused_by.clone(),
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused_by.iter().any(|cause| cause == "operator")
    }

    /// Signs of pressure as one number to sort by: what an operator looks at first is more.
    pub(super) fn pressure_rank(&self) -> u64 {
        let Some(pressure) = self.pressure else { return 0 };
        let swapped = pressure.swapped_in_bytes.saturating_add(pressure.swapped_out_bytes) >> 12;
        let kills = pressure.oom_kills.saturating_mul(1 << 40);
        kills.saturating_add(swapped.saturating_mul(16)).saturating_add(pressure.major_faults)
    }
}

/// How long ago the guest's statistics may have come to be new.
pub(super) fn is_fresh(sample: Option<&SampleView>, within: Duration) -> bool {
    sample.is_some_and(|sample| sample.age_seconds < within.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

/// None if the guest does not send them, or has booted since.
fn pressure(look: &Look, before: &Look) -> Option<Pressure> {
    let more = |name: &str| look.value(name)?.checked_sub(before.value(name)?);
    Some(Pressure {
        major_faults: more("major_faults")?,
        swapped_in_bytes: more("swapped_in_bytes")?,
        swapped_out_bytes: more("swapped_out_bytes")?,
        // Older guests do not send them.
        oom_kills: more("oom_kills").unwrap_or(0),
    })
}
