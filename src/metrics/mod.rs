// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon did, counted.
//!
//! Counters only grow, so that the differences between two scrapes hold; an operator's reset
//! moves the point that [`Counters::since_reset`] counts from. What a guest names may be 2⁴⁷ bytes a
//! chain, so that a counter saturates rather than begin again. They live in a fixed number of
//! atomics: counting neither allocates nor waits.

mod chain_time;
mod counter;
mod reason;

use std::array;
use std::fmt;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::lock::lock;
use chain_time::Histogram;
use counter::Counter;
use reason::{ERRORS, error_place};

pub(crate) use chain_time::ChainTime;
pub(crate) use reason::SkipReason;

#[derive(Debug, Default)]
struct Skipped {
    times: Counter,
    bytes: Counter,
}

/// A kind of queue whose chains name memory. Its name in metrics, summaries and the status is the
/// variant's in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[cfg_attr(test, derive(strum::EnumMessage))]
#[strum(serialize_all = "snake_case")]
pub enum Named {
    /// Free page reports.
    Reporting,
    /// Pages that go into the balloon.
    Inflate,
    /// Pages that leave the balloon.
    Deflate,
    /// Free page hints.
    Hinting,
}

/// The discarding calls of one chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Discarded {
    /// Bytes returned to the host.
    pub bytes: u64,
    /// Discarding calls.
    pub calls: u64,
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
pub(crate) struct Counters {
    queues: [Queue; Named::COUNT],
    bytes_discarded: Counter,
    discard_calls: Counter,
    skipped: [Skipped; SkipReason::COUNT],
    errors: [Counter; ERRORS.len()],
    chain_time: Histogram,
    /// Goes up and down, unlike the others.
    collecting: AtomicU64,
    /// What had been counted when the operator reset the counters.
    reset: Mutex<Snapshot>,
}

impl Counters {
    /// Counts a chain on a queue of this kind, which names `ranges` ranges, `bytes` bytes in all.
    pub(crate) fn named(&self, queue: Named, ranges: u64, bytes: u64) {
        self.queues[queue as usize].count(ranges, bytes);
    }

    /// Counts that a chain, whatever its queue, was served within `time`.
    pub(crate) fn served(&self, time: Duration) {
        self.chain_time.record(time);
    }

    /// Counts the discarding calls of a chain.
    pub(crate) fn discarded(&self, done: Discarded) {
        self.bytes_discarded.add(done.bytes);
        self.discard_calls.add(done.calls);
    }

    /// Counts `bytes` bytes that were skipped for `reason`.
    pub(crate) fn skip(&self, reason: SkipReason, bytes: u64) {
        let skipped = &self.skipped[reason as usize];
        skipped.times.add(1);
        skipped.bytes.add(bytes);
    }

    /// Counts that the kernel refused to discard `bytes` bytes.
    pub(crate) fn failed(&self, error: &io::Error, bytes: u64) {
        self.errors[error_place(error)].add(1);
        self.skip(SkipReason::Failed, bytes);
    }

    /// Takes note of how many bytes of the balloon are kept, since they fill no page of what backs
    /// the guest's memory.
    pub(crate) fn set_collecting(&self, bytes: u64) {
        self.collecting.store(bytes, Ordering::Relaxed);
    }

    /// See [`Counters::set_collecting`].
    pub(crate) fn collecting(&self) -> u64 {
        self.collecting.load(Ordering::Relaxed)
    }

    /// Everything since the daemon started, whatever was reset.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let read = Counter::get;
        Snapshot {
            queues: array::from_fn(|i| self.queues[i].snapshot()),
            bytes_discarded: read(&self.bytes_discarded),
            discard_calls: read(&self.discard_calls),
            skipped: array::from_fn(|i| Skips {
                times: read(&self.skipped[i].times),
                bytes: read(&self.skipped[i].bytes),
            }),
            errors: array::from_fn(|i| read(&self.errors[i])),
            chain_time: self.chain_time.snapshot(),
        }
    }

    /// Has [`Counters::since_reset`] count from here on.
    pub(crate) fn reset(&self) {
        let now = self.snapshot();
        *lock(&self.reset) = now;
    }

    /// Everything since the last [`Counters::reset`], or since the start.
    pub(crate) fn since_reset(&self) -> Snapshot {
        let reset = *lock(&self.reset);
        self.snapshot().since(&reset)
    }
}

/// What came on the queues of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueCounts {
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

/// What was skipped for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skips {
    /// How often.
    pub times: u64,
    /// Bytes in all.
    pub bytes: u64,
}

/// [`Counters`] at one moment. Plain data.
///
/// Its text is one line of `name=value`, skipped reasons as `skipped_REASON=TIMES/BYTES`, what never
/// happened left out where it is not among the first five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    queues: [QueueCounts; Named::COUNT],
    /// Bytes returned to the host.
    pub bytes_discarded: u64,
    /// Discarding system calls, those that failed included.
    pub discard_calls: u64,
    skipped: [Skips; SkipReason::COUNT],
    errors: [u64; ERRORS.len()],
    /// How long chains took, of every queue.
    pub chain_time: ChainTime,
}

/// The names of a list, in its order.
fn names<T: VariantArray + Copy + Into<&'static str>>() -> impl Iterator<Item = &'static str> + Clone
{
    T::VARIANTS.iter().map(|variant| (*variant).into())
}

impl Snapshot {
    /// What happened after `before`, an earlier snapshot of the same counters.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            queues: array::from_fn(|i| self.queues[i].since(&before.queues[i])),
            bytes_discarded: self.bytes_discarded.saturating_sub(before.bytes_discarded),
            discard_calls: self.discard_calls.saturating_sub(before.discard_calls),
            skipped: array::from_fn(|i| Skips {
                times: self.skipped[i].times.saturating_sub(before.skipped[i].times),
                bytes: self.skipped[i].bytes.saturating_sub(before.skipped[i].bytes),
            }),
            errors: array::from_fn(|i| self.errors[i].saturating_sub(before.errors[i])),
            chain_time: self.chain_time.since(&before.chain_time),
        }
    }

    /// What came on the queues of this kind.
    pub(crate) fn queue(&self, queue: Named) -> QueueCounts {
        self.queues[queue as usize]
    }

    /// Every kind of queue, by its name, and what came on it.
    pub(crate) fn queues(&self) -> impl Iterator<Item = (&'static str, QueueCounts)> + Clone + '_ {
        names::<Named>().zip(self.queues.iter().copied())
    }

    /// Every reason not to discard, by its name, and what was skipped for it.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = (&'static str, Skips)> + '_ {
        names::<SkipReason>().zip(self.skipped.iter().copied())
    }

    /// Bytes skipped for `reason`.
    #[cfg(test)]
    pub(crate) fn skipped_bytes(&self, reason: SkipReason) -> u64 {
        self.skipped[reason as usize].bytes
    }

    /// Bytes skipped, whatever the reason.
    #[cfg(test)]
    pub(crate) fn all_skipped_bytes(&self) -> u64 {
        self.skipped.iter().fold(0, |sum, skips| sum.saturating_add(skips.bytes))
    }

    /// The kernel's errors by their names (`EPERM`; `other` for those that have none here), and how
    /// often each came.
    pub(crate) fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ERRORS.iter().map(|(_, name)| *name).zip(self.errors.iter().copied())
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reporting = self.queue(Named::Reporting);
        write!(
            f,
            "chains={} ranges={} bytes_reported={} bytes_discarded={} discard_calls={}",
            reporting.chains,
            reporting.ranges,
            reporting.bytes,
            self.bytes_discarded,
            self.discard_calls,
        )?;
        for (name, queue) in
            self.queues().filter(|(name, _)| *name != <&str>::from(Named::Reporting))
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
        counters.named(Named::Reporting, 32, 1 << 26);
        counters.named(Named::Inflate, 2, 8192);
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
            for queue in Named::VARIANTS {
                counters.named(*queue, u64::MAX / 2, u64::MAX / 2);
            }
            counters.discarded(Discarded { bytes: u64::MAX / 2, calls: u64::MAX / 2 });
            counters.skip(SkipReason::OutsideMemory, u64::MAX / 2);
            counters.skip(SkipReason::Wraps, u64::MAX / 2);
        }
        let now = counters.snapshot();
        assert!(now.queues().all(|(_, all)| (all.ranges, all.bytes) == (u64::MAX, u64::MAX)));
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
    fn counter_reset_changes_only_the_operators_view() {
        let counters = busy();
        counters.reset();
        assert_eq!(counters.since_reset(), Snapshot::default());
        counters.served(Duration::ZERO);
        counters.named(Named::Hinting, 1, 4096);
        let since = counters.since_reset();
        assert_eq!((since.queue(Named::Hinting).bytes, since.chain_time.count()), (4096, 1));
        assert_eq!(counters.snapshot().queue(Named::Reporting).ranges, 32);
    }
}
