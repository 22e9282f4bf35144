// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every metric. `docs/user/metrics.md` is made from this list.
//!
//! A metric of the daemon has the name of its field in JSON, with the fields around it in front.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::MetricType::{Counter, Gauge};

use super::family::{Family, Samples, Unit};
use super::guest::STATISTICS;

const BYTES: Unit = Unit::Bytes;
const SECONDS: Unit = Unit::Seconds;
const STATUS: &str = "/v1/status";
const COUNTERS: &str = "/v1/counters";
const ZERO: &str = "0";
const NOT_SEEN: &str = "no VMM is connected, or the kernel did not say in time";
const NO_QUEUE: &str = "no chain came on that kind of queue";
const NO_REASON: &str = "no memory was skipped for that reason";

/// Those counts that are not 0.
fn counted<'a>(counts: &'a BTreeMap<Cow<'_, str>, u64>) -> Samples<'a> {
    let counts = counts.iter().map(|(name, count)| (name.as_ref(), *count));
    Samples::By(counts.filter(|(_, count)| *count > 0).collect())
}

/// Metrics of the daemon and of its process.
const OWN: [Family; 29] = [
    Family::new("balloon_build_info", Gauge, "Version of the daemon; 1", |picture| {
        Samples::By(vec![(&picture.status.version, 1)])
    })
    .by("version")
    .json(STATUS, "version"),
    Family::new("balloon_connected", Gauge, "Whether a VMM is connected", |picture| {
        Samples::whole(u64::from(picture.status.connected))
    })
    .json(STATUS, "connected"),
    Family::new(
        "balloon_waiting_connections",
        Gauge,
        "Other VMMs that wait until the one that is connected has gone",
        |picture| Samples::unless_zero(picture.status.waiting_connections as u64),
    )
    .json(STATUS, "waiting_connections")
    .absent(ZERO),
    Family::new(
        "balloon_driver",
        Gauge,
        "State of the guest's driver; 1 for the present state",
        |picture| Samples::By(vec![(&picture.status.driver, 1)]),
    )
    .by("state")
    .json(STATUS, "driver")
    .absent("the driver is in another state"),
    Family::new("balloon_target", Gauge, "Memory that the operator wants in the balloon", |picture| {
        Samples::whole(picture.status.target_bytes)
    })
    .in_unit(BYTES)
    .json(STATUS, "target_bytes"),
    Family::new("balloon_base_target", Gauge, "Memory that the operator wants in the balloon when no lease holds", |picture| {
        Samples::whole(picture.status.base_target_bytes)
    })
    .in_unit(BYTES)
    .json(STATUS, "base_target_bytes"),
    Family::new("balloon_lease_left", Gauge, "Time until the target's lease is over", |picture| {
        Samples::fraction(picture.status.lease_left_seconds)
    })
    .in_unit(SECONDS)
    .json(STATUS, "lease_left_seconds")
    .absent("the target has no lease"),
    Family::new("balloon_reclaim_target", Gauge, "Memory that a reclaim wants in the balloon", |picture| {
        Samples::whole(picture.status.reclaim_target_bytes)
    })
    .in_unit(BYTES)
    .json(STATUS, "reclaim_target_bytes")
    .absent("no reclaim is in progress"),
    Family::new("balloon_actual", Gauge, "Memory in the balloon, as the guest says", |picture| {
        Samples::whole(picture.status.actual_bytes)
    })
    .in_unit(BYTES)
    .json(STATUS, "actual_bytes")
    .absent("no driver has said so to this daemon"),
    Family::new(
        "balloon_collecting",
        Gauge,
        "Memory in the balloon that the host still holds: parts of its huge pages are not in the balloon",
        |picture| Samples::unless_zero(picture.status.collecting_bytes),
    )
    .in_unit(BYTES)
    .json(STATUS, "collecting_bytes")
    .absent(ZERO),
    Family::new("balloon_paused_by", Gauge, "Cause for which discarding is paused; 1", |picture| {
        let causes = picture.status.paused.paused_by.iter();
        Samples::By(causes.map(|cause| (cause.as_str(), 1)).collect())
    })
    .by("cause")
    .json(STATUS, "paused_by")
    .absent("discarding is not paused for that cause"),
    Family::new("balloon_pins", Gauge, "Ranges of memory that are pinned", |picture| {
        Samples::unless_zero(picture.status.pins.len() as u64)
    })
    .json(STATUS, "pins")
    .absent(ZERO),
    Family::new("balloon_memory", Gauge, "Memory that the VMM has announced", |picture| {
        Samples::whole(picture.status.memory.as_ref().map(|memory| memory.bytes))
    })
    .in_unit(BYTES)
    .json(STATUS, "memory.bytes")
    .absent("no VMM is connected, or it has announced none"),
    Family::new(
        "balloon_memory_resident",
        Gauge,
        "Resident memory of the files that back the guest's memory",
        |picture| {
            let memory = picture.status.memory.as_ref();
            Samples::whole(memory.and_then(|memory| memory.resident_bytes))
        },
    )
    .in_unit(BYTES)
    .json(STATUS, "memory.resident_bytes")
    .absent(NOT_SEEN),
    Family::new("balloon_chains", Counter, "Descriptor chains served", |picture| {
        counted(&picture.counters.chains)
    })
    .by("queue")
    .json(COUNTERS, "chains")
    .absent(NO_QUEUE),
    Family::new("balloon_ranges", Counter, "Ranges of memory that chains named", |picture| {
        counted(&picture.counters.ranges)
    })
    .by("queue")
    .json(COUNTERS, "ranges")
    .absent(NO_QUEUE),
    Family::new("balloon_named", Counter, "Memory that chains named, as the guest says", |picture| {
        counted(&picture.counters.named_bytes)
    })
    .in_unit(BYTES)
    .by("queue")
    .json(COUNTERS, "named_bytes")
    .absent(NO_QUEUE),
    Family::new("balloon_discarded", Counter, "Memory returned to the host", |picture| {
        Samples::whole(picture.counters.discarded_bytes)
    })
    .in_unit(BYTES)
    .json(COUNTERS, "discarded_bytes"),
    Family::new("balloon_discard_calls", Counter, "Discarding system calls", |picture| {
        Samples::whole(picture.counters.discard_calls)
    })
    .json(COUNTERS, "discard_calls"),
    Family::new("balloon_discard_failures", Counter, "Discarding system calls that failed", |picture| {
        Samples::whole(picture.counters.discard_failures)
    })
    .json(COUNTERS, "discard_failures"),
    Family::new("balloon_errors", Counter, "Discarding system calls that failed, by errno", |picture| {
        counted(&picture.counters.errors)
    })
    .by("errno")
    .json(COUNTERS, "errors")
    .absent("no call failed with that errno"),
    Family::new("balloon_skips", Counter, "Times that memory was not discarded", |picture| {
        counted(&picture.counters.skips)
    })
    .by("reason")
    .json(COUNTERS, "skips")
    .absent(NO_REASON),
    Family::new("balloon_skipped", Counter, "Memory that was not discarded", |picture| {
        counted(&picture.counters.skipped_bytes)
    })
    .in_unit(BYTES)
    .by("reason")
    .json(COUNTERS, "skipped_bytes")
    .absent(NO_REASON),
    Family::new(
        "balloon_chain",
        MetricType::Histogram,
        "Time from taking a chain to returning it",
        |picture| Samples::Histogram(&picture.counters.chain_seconds),
    )
    .in_unit(SECONDS)
    .json(COUNTERS, "chain_seconds")
    .absent("no chain was served"),
    Family::new("process_cpu", Counter, "CPU time of the daemon", |picture| {
        Samples::fraction(picture.process.cpu_seconds)
    })
    .in_unit(SECONDS),
    Family::new(
        "process_resident_memory",
        Gauge,
        "Resident memory of the daemon, with what it has mapped of the guest's",
        |picture| Samples::whole(picture.process.resident_bytes),
    )
    .in_unit(BYTES),
    Family::new("process_virtual_memory", Gauge, "Address space of the daemon", |picture| {
        Samples::whole(picture.process.virtual_bytes)
    })
    .in_unit(BYTES),
    Family::new("process_open_fds", Gauge, "Open descriptors of the daemon", |picture| {
        Samples::whole(picture.process.open_fds)
    }),
    Family::new("process_max_fds", Gauge, "Descriptors that the daemon may open", |picture| {
        Samples::whole(picture.process.max_fds)
    })
    .absent("no limit"),
];

/// Metrics of the process and the statistics whose values are fractions.
const MORE: [Family; 2] = [
    Family::new("process_start_time", Gauge, "When the daemon started, since 1970", |picture| {
        Samples::fraction(picture.process.start_seconds)
    })
    .in_unit(SECONDS),
    Family::new(
        "balloon_guest_statistics_age",
        Gauge,
        "Age of the guest's last statistics",
        |picture| {
            Samples::fraction(picture.statistics.sample.as_ref().map(|sample| sample.age_seconds))
        },
    )
    .in_unit(SECONDS)
    .json("/v1/statistics", "sample.age_seconds")
    .absent("the guest has sent none"),
];

/// All of them, in the order in which they are written.
pub(super) fn all() -> impl Iterator<Item = &'static Family> {
    OWN.iter().chain(&MORE).chain(&STATISTICS)
}
