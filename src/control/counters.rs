// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon did, in the shape that operators see: a field's name is its metric's, without the
//! prefix and `_total`, and a key is the value of its label.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::metrics::{ChainTime, QueueCounts, Snapshot};

/// A kind of queue, a reason or an errno.
type Name = Cow<'static, str>;

/// What the daemon did since the counters were reset.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CountersView {
    /// Number of descriptor chains served, by kind of queue.
    pub chains: BTreeMap<Name, u64>,
    /// Number of ranges of memory that chains named, by kind of queue.
    pub ranges: BTreeMap<Name, u64>,
    /// Bytes in those ranges, as the guest says, by kind of queue.
    pub named_bytes: BTreeMap<Name, u64>,
    /// Bytes returned to the host.
    pub discarded_bytes: u64,
    /// Number of discarding system calls, those that failed included.
    pub discard_calls: u64,
    /// Number of discarding system calls that failed.
    pub discard_failures: u64,
    /// Times that memory was not discarded, by reason.
    pub skips: BTreeMap<Name, u64>,
    /// Bytes that were not discarded, by reason.
    pub skipped_bytes: BTreeMap<Name, u64>,
    /// Number of discarding system calls that failed, by errno; without the errnos that never occurred.
    pub errors: BTreeMap<Name, u64>,
    /// Time from taking a chain to returning it.
    pub chain_seconds: HistogramView,
}

/// How often something took how long.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistogramView {
    /// How often.
    pub count: u64,
    /// Seconds in all.
    pub sum: f64,
    /// How often for each range of times; without the ranges that never occurred.
    pub buckets: Vec<BucketView>,
}

/// One range of times: longer than the bound of the range before.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BucketView {
    /// The longest time, in seconds; `null` in the last range, which has no bound.
    pub le: Option<f64>,
    /// How often it took that long.
    pub count: u64,
}

impl CountersView {
    /// What was counted.
    pub(crate) fn of(counts: &Snapshot) -> Self {
        let by_queue = |value: fn(&QueueCounts) -> u64| {
            counts.queues().map(|(name, queue)| (name.into(), value(&queue))).collect()
        };
        Self {
            chains: by_queue(|queue| queue.chains),
            ranges: by_queue(|queue| queue.ranges),
            named_bytes: by_queue(|queue| queue.bytes),
            discarded_bytes: counts.bytes_discarded,
            discard_calls: counts.discard_calls,
            discard_failures: counts.errors().fold(0, |sum, (_, times)| sum.saturating_add(times)),
            skips: counts.skipped().map(|(name, skips)| (name.into(), skips.times)).collect(),
            skipped_bytes: counts
                .skipped()
                .map(|(name, skips)| (name.into(), skips.bytes))
                .collect(),
            errors: (counts.errors().filter(|(_, times)| *times > 0))
                .map(|(name, times)| (name.into(), times))
                .collect(),
            chain_seconds: HistogramView::of(&counts.chain_time),
        }
    }
}

impl HistogramView {
    fn of(time: &ChainTime) -> Self {
        let bucket = |(le, count): (Option<std::time::Duration>, u64)| BucketView {
            le: le.map(|bound| bound.as_secs_f64()),
            count,
        };
        Self {
            count: time.count(),
            sum: time.sum().as_secs_f64(),
            buckets: time.buckets().map(bucket).filter(|bucket| bucket.count > 0).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::metrics::{Counters, Named, SkipReason};

    #[test]
    fn counters_view_busy_daemon_by_queue_and_reason() {
        let counters = Counters::default();
        counters.named(Named::Reporting, 32, 1 << 26);
        counters.skip(SkipReason::Wraps, 9);
        counters.failed(&io::Error::from_raw_os_error(libc::EPERM), 4096);
        counters.served(Duration::from_micros(30));
        counters.served(Duration::from_secs(11));
        let json = serde_json::to_value(CountersView::of(&counters.snapshot())).unwrap();
        assert_eq!(json["ranges"]["reporting"], 32);
        assert_eq!(
            (&json["skips"]["wraps"], &json["skipped_bytes"]["wraps"]),
            (&json!(1), &json!(9))
        );
        assert_eq!(json["skipped_bytes"]["pinned"], 0);
        assert_eq!((&json["errors"], &json["discard_failures"]), (&json!({"EPERM": 1}), &json!(1)));
        let buckets = json!([{"le": 0.00005, "count": 1}, {"le": null, "count": 1}]);
        assert_eq!(json["chain_seconds"]["buckets"], buckets);
    }
}
