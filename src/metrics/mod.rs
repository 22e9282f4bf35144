// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon did, counted.
//!
//! Counters only grow, so that whoever scrapes them can trust differences; an operator's reset
//! moves the point that [`Counters::since_reset`] counts from. What a guest names may be 2⁴⁷ bytes a
//! chain, so that a counter saturates rather than begin again. They live in a fixed number of
//! atomics: counting neither allocates nor waits.

mod chain_time;
mod counter;
mod reason;

use std::fmt;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::discard::Discarded;
use crate::lock::lock;
use chain_time::Histogram;
use counter::Counter;
use reason::{ERRORS, REASONS, error_place};

pub use chain_time::ChainTime;
pub use reason::SkipReason;

#[derive(Debug, Default)]
struct Skipped {
    times: Counter,
    bytes: Counter,
}

/// What came on the queues of one kind.
#[derive(Debug, Default)]
struct Queue {
    chains: Counter,
    ranges: Counter,
    bytes: Counter,
}

impl Queue {
    fn count(&self, ranges: u64, bytes: u64) {
        self.chains.add(1);
        self.ranges.add(ranges);
        self.bytes.add(bytes);
    }

    fn snapshot(&self) -> QueueCounts {
        let read = Counter::get;
        QueueCounts {
            chains: read(&self.chains),
            ranges: read(&self.ranges),
            bytes: read(&self.bytes),
        }
    }
}

/// Counters of one daemon. Relaxed atomics: each is right by itself, together they are a picture.
#[derive(Debug, Default)]
pub struct Counters {
    reporting: Queue,
    inflate: Queue,
    deflate: Queue,
    hinting: Queue,
    bytes_discarded: Counter,
    discard_calls: Counter,
    skipped: [Skipped; REASONS.len()],
    errors: [Counter; ERRORS.len()],
    chain_time: Histogram,
    /// Goes up and down, unlike the others.
    collecting: AtomicU64,
    /// What had been counted when the operator reset the counters.
    reset: Mutex<Snapshot>,
}

impl Counters {
    /// Counts a chain of `ranges` reported ranges, `bytes` bytes in all.
    pub fn reported(&self, ranges: u64, bytes: u64) {
        self.reporting.count(ranges, bytes);
    }

    /// Counts a chain of the inflate queue: `ranges` runs of pages, `bytes` bytes in all.
    pub fn inflated(&self, ranges: u64, bytes: u64) {
        self.inflate.count(ranges, bytes);
    }

    /// Counts a chain of the deflate queue, like [`Counters::inflated`].
    pub fn deflated(&self, ranges: u64, bytes: u64) {
        self.deflate.count(ranges, bytes);
    }

    /// Counts a chain of the hinting queue: `ranges` hinted ranges, `bytes` bytes in all.
    pub fn hinted(&self, ranges: u64, bytes: u64) {
        self.hinting.count(ranges, bytes);
    }

    /// Counts that a chain, whatever its queue, was served within `time`.
    pub fn served(&self, time: Duration) {
        self.chain_time.record(time);
    }

    /// Counts what was given back.
    pub fn discarded(&self, done: Discarded) {
        self.bytes_discarded.add(done.bytes);
        self.discard_calls.add(done.calls);
    }

    /// Counts `bytes` bytes that were left alone for `reason`.
    pub fn skip(&self, reason: SkipReason, bytes: u64) {
        let skipped = &self.skipped[reason as usize];
        skipped.times.add(1);
        skipped.bytes.add(bytes);
    }

    /// Counts that the kernel refused to discard `bytes` bytes.
    pub fn failed(&self, error: &io::Error, bytes: u64) {
        self.errors[error_place(error)].add(1);
        self.skip(SkipReason::Failed, bytes);
    }

    /// Takes note of how many bytes of the balloon are kept, since they fill no page of what backs
    /// the guest's memory.
    pub fn set_collecting(&self, bytes: u64) {
        self.collecting.store(bytes, Ordering::Relaxed);
    }

    /// See [`Counters::set_collecting`].
    pub fn collecting(&self) -> u64 {
        self.collecting.load(Ordering::Relaxed)
    }

    /// Everything since the daemon started, whatever was reset.
    pub fn snapshot(&self) -> Snapshot {
        let read = Counter::get;
        Snapshot {
            reporting: self.reporting.snapshot(),
            inflate: self.inflate.snapshot(),
            deflate: self.deflate.snapshot(),
            hinting: self.hinting.snapshot(),
            bytes_discarded: read(&self.bytes_discarded),
            discard_calls: read(&self.discard_calls),
            skipped: std::array::from_fn(|i| Skips {
                times: read(&self.skipped[i].times),
                bytes: read(&self.skipped[i].bytes),
            }),
            errors: std::array::from_fn(|i| read(&self.errors[i])),
            chain_time: self.chain_time.snapshot(),
        }
    }

    /// Has [`Counters::since_reset`] count from here on.
    pub fn reset(&self) {
        let now = self.snapshot();
        *lock(&self.reset) = now;
    }

    /// Everything since the last [`Counters::reset`], or since the start.
    pub fn since_reset(&self) -> Snapshot {
        let reset = *lock(&self.reset);
        self.snapshot().since(&reset)
    }
}

/// What came on the queues of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueCounts {
    /// Descriptor chains.
    pub chains: u64,
    /// Ranges of memory that they named.
    pub ranges: u64,
    /// Bytes in those ranges.
    pub bytes: u64,
}

impl QueueCounts {
    fn since(&self, before: &Self) -> Self {
        Self {
            chains: self.chains.saturating_sub(before.chains),
            ranges: self.ranges.saturating_sub(before.ranges),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }
}

/// What was left alone for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skips {
    /// How often.
    pub times: u64,
    /// Bytes in all.
    pub bytes: u64,
}

/// [`Counters`] at one moment. Plain data.
///
/// Its text is one line of `name=value`, skipped reasons as `skipped_REASON=TIMES/BYTES`, what never
/// happened left out where it is not among the first five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Free page reports.
    pub reporting: QueueCounts,
    /// Pages that went into the balloon.
    pub inflate: QueueCounts,
    /// Pages that came out of it.
    pub deflate: QueueCounts,
    /// Free page hints.
    pub hinting: QueueCounts,
    /// Bytes given back to the host.
    pub bytes_discarded: u64,
    /// Discarding system calls, those that failed included.
    pub discard_calls: u64,
    #[serde(serialize_with = "by_reason")]
    skipped: [Skips; REASONS.len()],
    #[serde(serialize_with = "by_name")]
    errors: [u64; ERRORS.len()],
    /// How long chains took, of every queue.
    pub chain_time: ChainTime,
}

fn by_reason<S: Serializer>(skipped: &[Skips], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(REASONS.iter().zip(skipped))
}

fn by_name<S: Serializer>(errors: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    let named = ERRORS.iter().map(|(_, name)| name).zip(errors);
    serializer.collect_map(named.filter(|(_, times)| **times > 0))
}

impl Snapshot {
    /// What happened after `before`, an earlier snapshot of the same counters.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reporting: self.reporting.since(&before.reporting),
            inflate: self.inflate.since(&before.inflate),
            deflate: self.deflate.since(&before.deflate),
            hinting: self.hinting.since(&before.hinting),
            bytes_discarded: self.bytes_discarded.saturating_sub(before.bytes_discarded),
            discard_calls: self.discard_calls.saturating_sub(before.discard_calls),
            skipped: std::array::from_fn(|i| Skips {
                times: self.skipped[i].times.saturating_sub(before.skipped[i].times),
                bytes: self.skipped[i].bytes.saturating_sub(before.skipped[i].bytes),
            }),
            errors: std::array::from_fn(|i| self.errors[i].saturating_sub(before.errors[i])),
            chain_time: self.chain_time.since(&before.chain_time),
        }
    }

    /// Every reason to leave memory alone, by its name, and what was left for it.
    pub fn skipped(&self) -> impl Iterator<Item = (&'static str, Skips)> + '_ {
        REASONS.into_iter().zip(self.skipped.iter().copied())
    }

    /// Bytes left alone for `reason`.
    pub fn skipped_bytes(&self, reason: SkipReason) -> u64 {
        self.skipped[reason as usize].bytes
    }

    /// Bytes left alone, whatever the reason.
    pub fn all_skipped_bytes(&self) -> u64 {
        self.skipped.iter().fold(0, |sum, skips| sum.saturating_add(skips.bytes))
    }

    /// The kernel's errors by their names (`EPERM`; `other` for those that have none here), and how
    /// often each came.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ERRORS.iter().map(|(_, name)| *name).zip(self.errors.iter().copied())
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "chains={} ranges={} bytes_reported={} bytes_discarded={} discard_calls={}",
            self.reporting.chains,
            self.reporting.ranges,
            self.reporting.bytes,
            self.bytes_discarded,
            self.discard_calls,
        )?;
        for (name, queue) in
            [("inflate", self.inflate), ("deflate", self.deflate), ("hinting", self.hinting)]
        {
            if queue.chains > 0 {
                write!(f, " {name}_chains={} {name}_bytes={}", queue.chains, queue.bytes)?;
            }
        }
        for (name, Skips { times, bytes }) in self.skipped().filter(|(_, skips)| skips.times > 0) {
            write!(f, " skipped_{name}={times}/{bytes}")?;
        }
        for (name, times) in self.errors().filter(|(_, times)| *times > 0) {
            write!(f, " error_{name}={times}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> Counters {
        let counters = Counters::default();
        counters.reported(32, 1 << 26);
        counters.inflated(2, 8192);
        counters.discarded(Discarded { bytes: 1 << 26, calls: 1 });
        counters.skip(SkipReason::Wraps, 9);
        counters.failed(&io::Error::from_raw_os_error(libc::EPERM), 4096);
        counters.served(Duration::from_micros(30));
        counters
    }

    /// A guest that names 2⁴⁷ bytes a chain gets here within minutes.
    #[test]
    fn counters_of_named_bytes_saturate() {
        let counters = Counters::default();
        for _ in 0..3 {
            for count in
                [Counters::reported, Counters::inflated, Counters::deflated, Counters::hinted]
            {
                count(&counters, u64::MAX / 2, u64::MAX / 2);
            }
            counters.discarded(Discarded { bytes: u64::MAX / 2, calls: u64::MAX / 2 });
            counters.skip(SkipReason::OutOfMemory, u64::MAX / 2);
            counters.skip(SkipReason::Wraps, u64::MAX / 2);
        }
        let now = counters.snapshot();
        let queues = [now.reporting, now.inflate, now.deflate, now.hinting];
        assert!(queues.iter().all(|queue| (queue.ranges, queue.bytes) == (u64::MAX, u64::MAX)));
        assert_eq!((now.bytes_discarded, now.discard_calls), (u64::MAX, u64::MAX));
        assert_eq!(now.skipped_bytes(SkipReason::Wraps), u64::MAX);
        assert_eq!(now.all_skipped_bytes(), u64::MAX);
    }

    #[test]
    fn a_snapshot_reads_as_one_line() {
        assert_eq!(
            busy().snapshot().to_string(),
            "chains=1 ranges=32 bytes_reported=67108864 bytes_discarded=67108864 discard_calls=1 \
             inflate_chains=1 inflate_bytes=8192 skipped_wraps=1/9 skipped_failed=1/4096 \
             error_EPERM=1"
        );
    }

    #[test]
    fn a_snapshot_is_plain_data() {
        let json = serde_json::to_value(busy().snapshot()).unwrap();
        assert_eq!(json["reporting"]["ranges"], 32);
        assert_eq!(json["skipped"]["wraps"], serde_json::json!({"times": 1, "bytes": 9}));
        assert_eq!(json["skipped"]["pinned"]["bytes"], 0);
        assert_eq!(json["errors"], serde_json::json!({"EPERM": 1}));
        assert_eq!(json["chain_time"]["buckets"], serde_json::json!([[50_000, 1]]));
    }

    #[test]
    fn a_reset_is_the_operators_and_changes_nothing_for_others() {
        let counters = busy();
        counters.reset();
        assert_eq!(counters.since_reset(), Snapshot::default());
        counters.served(Duration::ZERO);
        counters.hinted(1, 4096);
        let since = counters.since_reset();
        assert_eq!((since.hinting.bytes, since.chain_time.count()), (4096, 1));
        assert_eq!(counters.snapshot().reporting.ranges, 32);
    }
}
