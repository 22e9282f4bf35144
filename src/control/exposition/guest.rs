// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's statistics as metrics (virtio 1.3, 5.5.6.4). The guest counts since it booted, and the
//! daemon does not verify what it says.

use prometheus_client::metrics::MetricType;

use super::family::{Family, Unit};

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family::of_guest(name, MetricType::Counter, help)
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family::of_guest(name, MetricType::Gauge, help)
}

const BYTES: Unit = Unit::Bytes;

/// Every statistic, in the order of the tags.
pub(super) const STATISTICS: [Family; 16] = [
    counter("balloon_guest_swapped_in", "Memory that the guest swapped in").in_unit(BYTES),
    counter("balloon_guest_swapped_out", "Memory that the guest swapped out").in_unit(BYTES),
    counter("balloon_guest_major_faults", "Page faults of the guest that waited for I/O"),
    counter("balloon_guest_minor_faults", "Page faults of the guest without I/O"),
    gauge("balloon_guest_free", "Memory that the guest does not use at all").in_unit(BYTES),
    gauge("balloon_guest_total", "Memory of the guest without that in the balloon").in_unit(BYTES),
    gauge("balloon_guest_available", "Memory that the guest can use without swapping")
        .in_unit(BYTES),
    gauge("balloon_guest_disk_cache", "Page cache of the guest").in_unit(BYTES),
    counter("balloon_guest_hugetlb_allocations", "Huge pages that the guest allocated"),
    counter("balloon_guest_hugetlb_failures", "Huge pages that the guest failed to allocate"),
    counter("balloon_guest_oom_kills", "Processes that the OOM killer of the guest ended"),
    counter(
        "balloon_guest_allocation_stalls",
        "Allocations of the guest that waited for its reclaim",
    ),
    counter(
        "balloon_guest_async_scanned",
        "Memory that the guest scanned for reclaim in the background",
    )
    .in_unit(BYTES),
    counter(
        "balloon_guest_direct_scanned",
        "Memory that the guest scanned for reclaim during an allocation",
    )
    .in_unit(BYTES),
    counter("balloon_guest_async_reclaimed", "Memory that the guest reclaimed in the background")
        .in_unit(BYTES),
    counter(
        "balloon_guest_direct_reclaimed",
        "Memory that the guest reclaimed during an allocation",
    )
    .in_unit(BYTES),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Statistics;

    #[test]
    fn guest_families_are_the_statistics() {
        let names = Statistics::default().named().map(|(name, _)| name.to_owned());
        assert_eq!(STATISTICS.map(|family| family.field()), names);
    }
}
