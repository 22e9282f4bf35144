// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What QEMU's own balloon device does to memory, from QEMU's trace.

use std::ops::Sub;

/// Selects the event that QEMU emits once for each range that it discards.
///
/// A pattern, since it was called `ram_block_discard_range` before it became
/// `ram_block_discard_shared_range`; QEMU ignores a pattern that matches nothing.
pub(super) const EVENT_PATTERN: &str = "ram_block_discard*range";

/// How much QEMU has discarded, and with how many system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardCount {
    /// Ranges that QEMU was asked to discard.
    pub ranges: u64,
    /// System calls on them: `fallocate` and `madvise`.
    pub calls: u64,
    /// Bytes in them, whether they were populated or not.
    pub bytes: u64,
    /// Ranges for which a call failed; they are part of the other numbers.
    pub failed: u64,
}

impl Sub for DiscardCount {
    type Output = Self;

    /// What came since an earlier count.
    fn sub(self, earlier: Self) -> Self {
        Self {
            ranges: self.ranges - earlier.ranges,
            calls: self.calls - earlier.calls,
            bytes: self.bytes - earlier.bytes,
            failed: self.failed - earlier.failed,
        }
    }
}

/// One event: `[PREFIX:]NAME BLOCK@ADDRESS + LENGTH: madvise: 1 fallocate: 1 ret: 0`.
struct Event {
    bytes: u64,
    madvise: bool,
    fallocate: bool,
    ret: i64,
}

/// Adds up a trace. A line that QEMU is still writing, at the end, is not counted.
pub(super) fn count(trace: &str) -> DiscardCount {
    let complete = trace.rfind('\n').map_or("", |end| &trace[..end]);
    complete.lines().filter_map(parse).fold(DiscardCount::default(), |sum, event| DiscardCount {
        ranges: sum.ranges + 1,
        calls: sum.calls + u64::from(event.madvise) + u64::from(event.fallocate),
        bytes: sum.bytes.saturating_add(event.bytes),
        failed: sum.failed + u64::from(event.ret != 0),
    })
}

fn parse(line: &str) -> Option<Event> {
    let (_, rest) = line.split_once("ram_block_discard")?;
    let (_, rest) = rest.split_once(" + 0x")?;
    let (length, rest) = rest.split_once(": madvise: ")?;
    let (madvise, rest) = rest.split_once(" fallocate: ")?;
    let (fallocate, ret) = rest.split_once(" ret: ")?;
    Some(Event {
        bytes: u64::from_str_radix(length, 16).ok()?,
        madvise: madvise == "1",
        fallocate: fallocate == "1",
        ret: ret.trim().parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
ram_block_discard_shared_range mem@0x7f2a00000000 + 0x400000: madvise: 1 fallocate: 1 ret: 0
71@1608130130.441188:ram_block_discard_range mem@0x7f2a00000000 + 0x200000: madvise: 0 fallocate: 1 ret: 0
virtio_balloon_to_target balloon target: 0x40000000 num_pages: 0
ram_block_discard_shared_range mem@0x7f2a00400000 + 0x1000: madvise: 1 fallocate: 1 ret: -22
ram_block_discard_shared_range mem@0x7f2a00400000 + 0x10";

    #[test]
    fn ranges_and_calls_are_added_up() {
        let expected = DiscardCount { ranges: 3, calls: 5, bytes: 0x601000, failed: 1 };
        assert_eq!(count(TRACE), expected);
        assert_eq!(count(""), DiscardCount::default());
    }

    #[test]
    fn a_difference_is_what_came_since() {
        let early = count(&TRACE[..=TRACE.find('\n').unwrap()]);
        assert_eq!(early.ranges, 1);
        assert_eq!((count(TRACE) - early).bytes, 0x201000);
    }
}
