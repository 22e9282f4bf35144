// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long chains took, as a histogram with fixed buckets.

use std::time::Duration;

use super::counter::Counter;

/// The upper bounds of the buckets in nanoseconds: 1, 2, 5 and their tens, from 1 µs to 10 s. What
/// takes longer than the last falls into one bucket more.
const BOUNDS_NS: [u64; 22] = bounds();
const BUCKETS: usize = BOUNDS_NS.len() + 1;

const fn bounds() -> [u64; 22] {
    let mut bounds = [0; 22];
    let (mut i, mut decade) = (0, 1_000);
    while i < bounds.len() {
        bounds[i] = decade * [1, 2, 5][i % 3];
        i += 1;
        if i % 3 == 0 {
            decade *= 10;
        }
    }
    bounds
}

/// The histogram as it grows.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl Histogram {
    pub(super) fn record(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].add(1);
        self.sum_ns.add(ns);
    }

    pub(super) fn snapshot(&self) -> ChainTime {
        let read = Counter::get;
        ChainTime {
            buckets: std::array::from_fn(|i| read(&self.buckets[i])),
            sum_ns: read(&self.sum_ns),
        }
    }
}

/// How long chains took, from being taken off the ring to being returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainTime {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl ChainTime {
    /// How many chains were served.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// What they took together.
    pub(crate) fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// Each bucket's upper bound, `None` for the last, which has none, and how many chains fell
    /// into it alone. Prometheus wants them summed up.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let bounds = BOUNDS_NS.iter().map(|ns| Some(Duration::from_nanos(*ns)));
        bounds.chain([None]).zip(self.buckets.iter().copied())
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            buckets: std::array::from_fn(|i| self.buckets[i].saturating_sub(before.buckets[i])),
            sum_ns: self.sum_ns.saturating_sub(before.sum_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_go_from_a_microsecond_to_ten_seconds() {
        assert_eq!(BOUNDS_NS[..4], [1_000, 2_000, 5_000, 10_000]);
        assert_eq!(BOUNDS_NS[21], 10_000_000_000);
        assert!(BOUNDS_NS.is_sorted());
    }

    #[test]
    fn a_time_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for ns in [0, 1_000, 1_001, 10_000_000_000, 10_000_000_001, u64::MAX] {
            histogram.record(Duration::from_nanos(ns));
        }
        let time = histogram.snapshot();
        let filled: Vec<_> = time.buckets().filter(|(_, count)| *count > 0).collect();
        let bound = |ns| Some(Duration::from_nanos(ns));
        assert_eq!(
            filled,
            [(bound(1_000), 2), (bound(2_000), 1), (bound(10_000_000_000), 1), (None, 2)]
        );
        assert_eq!(time.count(), 6);
        assert_eq!(time.sum(), Duration::from_nanos(u64::MAX), "the sum does not wrap");
        assert_eq!(time.since(&time), ChainTime::default());
    }
}
