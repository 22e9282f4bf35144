// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metrics as Prometheus scrapes them (OpenMetrics 1.0, text).
//!
//! Counters are those since the daemon started: a reset by an operator does not touch them.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use strum::VariantArray;

use super::views::{MemoryView, PausedView, StatisticsView};
use crate::device::DriverState;
use crate::discard::Cause;
use crate::metrics::Snapshot;
use crate::state::State;

/// What [`text`] is.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics, of one moment.
///
/// # Errors
/// None that happens: text can be written to memory.
pub(crate) fn text(state: &State, resident_bytes: Option<u64>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("balloon");
    registry.register_collector(Box::new(Picture::of(state, resident_bytes)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Everything that metrics are made of.
#[derive(Debug)]
struct Picture {
    counts: Snapshot,
    connected: bool,
    waiting: usize,
    driver: DriverState,
    target_bytes: u64,
    actual_bytes: Option<u64>,
    collecting_bytes: u64,
    paused: PausedView,
    pins: usize,
    memory: Option<MemoryView>,
    statistics: StatisticsView,
}

impl Picture {
    fn of(state: &State, resident_bytes: Option<u64>) -> Self {
        Self {
            counts: state.counters.snapshot(),
            connected: state.frontend().is_some(),
            waiting: state.waiting_connections(),
            driver: state.driver(),
            target_bytes: state.balloon.target_bytes(),
            actual_bytes: state.actual_bytes(),
            collecting_bytes: state.counters.collecting(),
            paused: PausedView::of(state),
            pins: state.inhibit.pins().len(),
            memory: MemoryView::of(state, resident_bytes),
            statistics: StatisticsView::of(state),
        }
    }
}

impl Collector for Picture {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.work(&mut page)?;
        self.memory(&mut page)?;
        self.guest(&mut page)
    }
}

impl Picture {
    /// What came on the queues, and what became of it.
    fn work(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = &self.counts;
        let by_queue = |value: fn(&crate::metrics::QueueCounts) -> u64| {
            counts.queues().map(move |(name, queue)| ([("queue", name)], value(&queue)))
        };
        page.counters("chains", "Chains served", None, by_queue(|queue| queue.chains))?;
        page.counters(
            "ranges",
            "Ranges of memory named by chains",
            None,
            by_queue(|queue| queue.ranges),
        )?;
        page.counters(
            "named",
            "Memory named by chains, as the guest says",
            Some(Unit::Bytes),
            by_queue(|queue| queue.bytes),
        )?;
        let discarded = "Memory returned to the host";
        page.counter("discarded", discarded, Some(Unit::Bytes), counts.bytes_discarded)?;
        let calls = "Discarding system calls";
        page.counter("discard_calls", calls, None, counts.discard_calls)?;
        let skipped = || counts.skipped().map(|(name, skips)| ([("reason", name)], skips));
        let left = "Memory not discarded, by reason";
        page.counters(
            "skipped",
            left,
            Some(Unit::Bytes),
            skipped().map(|(label, skips)| (label, skips.bytes)),
        )?;
        let times = "Times that memory was not discarded, by reason";
        page.counters("skips", times, None, skipped().map(|(label, skips)| (label, skips.times)))?;
        let errors = counts.errors().map(|(name, times)| ([("errno", name)], times));
        page.counters("errors", "Discarding system calls that failed, by errno", None, errors)?;

        let seconds = Some(&Unit::Seconds);
        let help = "Time from taking a chain to returning it";
        let time = &counts.chain_time;
        let bound =
            |bound: Option<std::time::Duration>| bound.map_or(f64::INFINITY, |at| at.as_secs_f64());
        let buckets: Vec<_> = time.buckets().map(|(at, chains)| (bound(at), chains)).collect();
        page.0
            .encode_descriptor("chain", help, seconds, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(time.sum().as_secs_f64(), time.count(), &buckets, None)
    }

    /// What the operator has set, and where it led.
    fn memory(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge("connected", "Whether a frontend is connected", None, self.connected.into())?;
        let waiting = "Frontends that wait for the one that is served to disconnect";
        page.gauge("waiting_connections", waiting, None, self.waiting as u64)?;
        let states = DriverState::VARIANTS
            .iter()
            .map(|state| ([("state", state.name())], u64::from(*state == self.driver)));
        page.gauges("driver", "State of the guest's driver; 1 for the present one", states)?;
        let target = "Target of the balloon";
        page.gauge("target", target, Some(Unit::Bytes), self.target_bytes)?;
        if let Some(bytes) = self.actual_bytes {
            page.gauge(
                "actual",
                "Memory in the balloon, as the guest says",
                Some(Unit::Bytes),
                bytes,
            )?;
        }
        let collecting = "Memory in the balloon that the host still holds: parts of its huge pages are \
                          not in the balloon";
        page.gauge("collecting", collecting, Some(Unit::Bytes), self.collecting_bytes)?;
        let causes = Cause::VARIANTS.iter().map(|cause| {
            let holds = self.paused.paused_by.iter().any(|by| by == cause.name());
            ([("cause", cause.name())], u64::from(holds))
        });
        page.gauges("paused", "Whether discarding is paused, by cause", causes)?;
        page.gauge("pins", "Ranges that the operator has pinned", None, self.pins as u64)?;
        if let Some(memory) = &self.memory {
            let help = "Memory that the frontend has announced";
            page.gauge("guest_memory", help, Some(Unit::Bytes), memory.bytes)?;
            if let Some(bytes) = memory.resident_bytes {
                let help = "Resident memory of the files that back the guest's memory";
                page.gauge("resident", help, Some(Unit::Bytes), bytes)?;
            }
        }
        Ok(())
    }

    /// What the guest says of itself.
    fn guest(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(sample) = &self.statistics.sample else { return Ok(()) };
        let help = "Age of the guest's last statistics";
        let mut age = page.0.encode_descriptor(
            "guest_statistics_age",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        age.encode_gauge(&sample.age_seconds)?;
        let told = sample
            .values
            .iter()
            .filter_map(|(name, value)| Some(([("name", name.as_str())], (*value)?)));
        page.gauges(
            "guest_statistics",
            "Guest statistics (virtio 1.3, 5.5.6.4); not verified",
            told,
        )
    }
}

/// Writes one metric after another.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, unit: Option<Unit>, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric =
            self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (label, value) in values {
            metric.encode_family(&label)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (label, value) in values {
            metric.encode_family(&label)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}
