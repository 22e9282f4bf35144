//! What the daemon did, counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Discarded;

/// Why reported memory was not discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// A range of no bytes.
    Empty,
    /// A range that passes the end of the address space.
    Wraps,
    /// A descriptor that the device may not write: no report (virtio 1.3, 5.5.6.7).
    NotWritable,
    /// Guest physical addresses that are not guest memory.
    OutOfMemory,
    /// The parts of a range that do not fill a page of what backs it.
    Unaligned,
    /// Bytes that the same chain had named already.
    Overlap,
    /// The guest poisons its free pages with a value other than zero (virtio 1.3, 5.5.6.5).
    Poisoned,
    /// A descriptor chain that breaks off or breaks the rules: none of it is trusted.
    BrokenChain,
    /// The guest has not negotiated free page reporting.
    NotNegotiated,
    /// The kernel refused.
    Failed,
    /// The session was ending.
    Stopping,
    /// The operator has paused discarding.
    Paused,
    /// The guest is being migrated: what is discarded now could be missed at the destination.
    Migrating,
    /// A postcopy migration is under way.
    Postcopy,
    /// The operator has pinned the memory.
    Pinned,
    /// Memory of hugetlbfs, which is not given back unless an option says so.
    Hugetlb,
    /// What backs the memory may not be written, and so not punched.
    ReadOnly,
    /// A queue of which the acked features do not say whether it reports or hints.
    AmbiguousQueue,
}

/// Every [`SkipReason`] with the name it has in summaries.
const REASONS: [(SkipReason, &str); 18] = [
    (SkipReason::Empty, "empty"),
    (SkipReason::Wraps, "wraps"),
    (SkipReason::NotWritable, "not_writable"),
    (SkipReason::OutOfMemory, "out_of_memory"),
    (SkipReason::Unaligned, "unaligned"),
    (SkipReason::Overlap, "overlap"),
    (SkipReason::Poisoned, "poisoned"),
    (SkipReason::BrokenChain, "broken_chain"),
    (SkipReason::NotNegotiated, "not_negotiated"),
    (SkipReason::Failed, "failed"),
    (SkipReason::Stopping, "stopping"),
    (SkipReason::Paused, "paused"),
    (SkipReason::Migrating, "migrating"),
    (SkipReason::Postcopy, "postcopy"),
    (SkipReason::Pinned, "pinned"),
    (SkipReason::Hugetlb, "hugetlb"),
    (SkipReason::ReadOnly, "read_only"),
    (SkipReason::AmbiguousQueue, "ambiguous_queue"),
];

#[derive(Debug, Default)]
struct Skipped {
    times: AtomicU64,
    bytes: AtomicU64,
}

/// Counters of one session. Relaxed atomics: each is right by itself, together they are a picture.
#[derive(Debug, Default)]
pub struct Counters {
    chains: AtomicU64,
    ranges: AtomicU64,
    bytes_reported: AtomicU64,
    bytes_discarded: AtomicU64,
    discard_calls: AtomicU64,
    other_chains: AtomicU64,
    skipped: [Skipped; REASONS.len()],
}

impl Counters {
    /// Counts a chain of `ranges` reported ranges, `bytes` bytes in all.
    pub(crate) fn reported(&self, ranges: u64, bytes: u64) {
        self.chains.fetch_add(1, Ordering::Relaxed);
        self.ranges.fetch_add(ranges, Ordering::Relaxed);
        self.bytes_reported.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a chain of the inflate queue or the deflate queue.
    pub(crate) fn other_chain(&self) {
        self.other_chains.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the time that a chain took from the ring until it could be returned.
    pub(crate) fn chain_took(&self, _time: std::time::Duration) {}

    /// Counts what was given back.
    pub(crate) fn discarded(&self, done: Discarded) {
        self.bytes_discarded.fetch_add(done.bytes, Ordering::Relaxed);
        self.discard_calls.fetch_add(done.calls, Ordering::Relaxed);
    }

    /// Counts `bytes` bytes that were left alone for `reason`.
    pub(crate) fn skip(&self, reason: SkipReason, bytes: u64) {
        let skipped = &self.skipped[reason as usize];
        skipped.times.fetch_add(1, Ordering::Relaxed);
        skipped.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counters as they stand.
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            chains: read(&self.chains),
            ranges: read(&self.ranges),
            bytes_reported: read(&self.bytes_reported),
            bytes_discarded: read(&self.bytes_discarded),
            discard_calls: read(&self.discard_calls),
            other_chains: read(&self.other_chains),
            skipped: std::array::from_fn(|i| {
                (read(&self.skipped[i].times), read(&self.skipped[i].bytes))
            }),
        }
    }
}

/// [`Counters`] at one moment. Its text is one line of `name=value`, skipped reasons as
/// `skipped_REASON=TIMES/BYTES`, those that never happened left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Reports that came: descriptor chains of a reporting queue.
    pub chains: u64,
    /// Ranges in them: device-writable descriptors that are a range.
    pub ranges: u64,
    /// Bytes in those ranges.
    pub bytes_reported: u64,
    /// Bytes given back to the host.
    pub bytes_discarded: u64,
    /// Discarding system calls.
    pub discard_calls: u64,
    /// Chains of the inflate and deflate queues, returned without being acted on.
    pub other_chains: u64,
    skipped: [(u64, u64); REASONS.len()],
}

impl Snapshot {
    /// What happened after `before`, an earlier snapshot of the same counters.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            chains: self.chains.saturating_sub(before.chains),
            ranges: self.ranges.saturating_sub(before.ranges),
            bytes_reported: self.bytes_reported.saturating_sub(before.bytes_reported),
            bytes_discarded: self.bytes_discarded.saturating_sub(before.bytes_discarded),
            discard_calls: self.discard_calls.saturating_sub(before.discard_calls),
            other_chains: self.other_chains.saturating_sub(before.other_chains),
            skipped: std::array::from_fn(|i| {
                let ((times, bytes), old) = (self.skipped[i], before.skipped[i]);
                (times.saturating_sub(old.0), bytes.saturating_sub(old.1))
            }),
        }
    }

    /// Bytes left alone for `reason`.
    pub fn skipped_bytes(&self, reason: SkipReason) -> u64 {
        self.skipped[reason as usize].1
    }

    /// Bytes left alone, whatever the reason.
    pub fn all_skipped_bytes(&self) -> u64 {
        self.skipped.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "chains={} ranges={} bytes_reported={} bytes_discarded={} discard_calls={} other_chains={}",
            self.chains,
            self.ranges,
            self.bytes_reported,
            self.bytes_discarded,
            self.discard_calls,
            self.other_chains,
        )?;
        for (reason, name) in REASONS {
            let (times, bytes) = self.skipped[reason as usize];
            if times > 0 {
                write!(f, " skipped_{name}={times}/{bytes}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place() {
        for (place, (reason, _)) in REASONS.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
    }

    #[test]
    fn a_snapshot_reads_as_one_line() {
        let counters = Counters::default();
        counters.reported(32, 1 << 26);
        counters.discarded(Discarded { bytes: 1 << 26, calls: 1 });
        counters.skip(SkipReason::Wraps, 9);
        assert_eq!(
            counters.snapshot().to_string(),
            "chains=1 ranges=32 bytes_reported=67108864 bytes_discarded=67108864 \
             discard_calls=1 other_chains=0 skipped_wraps=1/9"
        );
    }
}
