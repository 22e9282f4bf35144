// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Statistics of the guest's memory (virtio 1.3, sections 5.5.6.3 and 5.5.6.4), as the driver sends
//! them.

use std::time::{Duration, Instant};

use serde::Serialize;
use vm_memory::GuestAddress;

use super::chain::ChainHead;
use super::log::DeviceLog;
use crate::discard::{GuestMemory, peek};
use crate::metrics::{Counters, SkipReason};

/// Bytes of a statistic: a tag of 16 bits and a value of 64 behind it, packed.
const STATISTIC_SIZE: usize = size_of::<u16>() + size_of::<u64>();
/// The most statistics that are read of one buffer. Linux knows sixteen.
const MAX_STATISTICS: usize = 256;

/// How a guest says that it uses its memory (virtio 1.3, 5.5.6.4; from `oom_kills` on
/// `linux/virtio_balloon.h`). `None` is what the guest does not tell. Counts are since its boot.
///
/// A guest's word: nothing here is checked, and nothing may rely on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Statistics {
    /// 0: bytes that were swapped in.
    pub swapped_in_bytes: Option<u64>,
    /// 1: bytes that were swapped out.
    pub swapped_out_bytes: Option<u64>,
    /// 2: page faults that had to wait for a disk.
    pub major_faults: Option<u64>,
    /// 3: page faults that had not.
    pub minor_faults: Option<u64>,
    /// 4: free bytes.
    pub free_bytes: Option<u64>,
    /// 5: bytes of memory in all.
    pub total_bytes: Option<u64>,
    /// 6: bytes that could be had without swapping.
    pub available_bytes: Option<u64>,
    /// 7: bytes of caches that could be dropped.
    pub disk_cache_bytes: Option<u64>,
    /// 8: huge pages that were allocated.
    pub hugetlb_allocations: Option<u64>,
    /// 9: huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
    /// 10: how often the OOM killer ran.
    pub oom_kills: Option<u64>,
    /// 11: how often an allocation had to reclaim memory itself.
    pub allocation_stalls: Option<u64>,
    /// 12: bytes looked at by background reclaim.
    pub async_scanned_bytes: Option<u64>,
    /// 13: bytes looked at by allocations that had to reclaim.
    pub direct_scanned_bytes: Option<u64>,
    /// 14: bytes reclaimed in the background.
    pub async_reclaimed_bytes: Option<u64>,
    /// 15: bytes reclaimed by allocations.
    pub direct_reclaimed_bytes: Option<u64>,
}

impl Statistics {
    /// How many statistics there are; their tags are 0 to 15.
    pub(crate) const COUNT: usize = 16;

    /// Every statistic with its name, in the order of the tags.
    pub(crate) fn named(&self) -> [(&'static str, Option<u64>); Self::COUNT] {
        [
            ("swapped_in_bytes", self.swapped_in_bytes),
            ("swapped_out_bytes", self.swapped_out_bytes),
            ("major_faults", self.major_faults),
            ("minor_faults", self.minor_faults),
            ("free_bytes", self.free_bytes),
            ("total_bytes", self.total_bytes),
            ("available_bytes", self.available_bytes),
            ("disk_cache_bytes", self.disk_cache_bytes),
            ("hugetlb_allocations", self.hugetlb_allocations),
            ("hugetlb_failures", self.hugetlb_failures),
            ("oom_kills", self.oom_kills),
            ("allocation_stalls", self.allocation_stalls),
            ("async_scanned_bytes", self.async_scanned_bytes),
            ("direct_scanned_bytes", self.direct_scanned_bytes),
            ("async_reclaimed_bytes", self.async_reclaimed_bytes),
            ("direct_reclaimed_bytes", self.direct_reclaimed_bytes),
        ]
    }

    /// The statistic with this tag.
    fn slot(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swapped_in_bytes,
            1 => &mut self.swapped_out_bytes,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_bytes,
            5 => &mut self.total_bytes,
            6 => &mut self.available_bytes,
            7 => &mut self.disk_cache_bytes,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kills,
            11 => &mut self.allocation_stalls,
            12 => &mut self.async_scanned_bytes,
            13 => &mut self.direct_scanned_bytes,
            14 => &mut self.async_reclaimed_bytes,
            15 => &mut self.direct_reclaimed_bytes,
            _ => return None,
        })
    }
}

/// What a guest told, and when it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// What it told.
    pub values: Statistics,
    /// Statistics in it with unknown tags.
    pub unknown_tags: u32,
    /// When it came.
    pub at: Instant,
    /// Bytes that the driver said were in its balloon when it came; `None` if it had not.
    pub balloon_bytes: Option<u64>,
}

impl Sample {
    /// How long ago it came.
    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// The bytes of a statistics buffer, as many as are looked at.
struct Copied {
    bytes: [u8; MAX_STATISTICS * STATISTIC_SIZE],
    len: usize,
}

impl Copied {
    /// Copies the next `len` bytes at `from`; returns how many there was no room for.
    ///
    /// # Errors
    /// If not all that there is room for is guest memory, or can be read; nothing is copied.
    fn read(
        &mut self,
        memory: &GuestMemory,
        from: GuestAddress,
        len: usize,
    ) -> Result<usize, SkipReason> {
        let room = &mut self.bytes[self.len..];
        let taken = len.min(room.len());
        let read = peek(memory, from, &mut room[..taken]).map_err(|_| SkipReason::Unreadable)?;
        if read < taken {
            return Err(SkipReason::OutsideMemory);
        }
        self.len += taken;
        Ok(len - taken)
    }
}

/// Reads the statistics of a chain; `None` if it has none, as the first buffer of a driver.
///
/// Entries may lie across descriptors. Of a tag that comes twice the last one counts; tags that are
/// not known are passed over, as the specification wants (5.5.6.3.2). Everything else that is no
/// statistic is skipped and counted, and of a chain that breaks nothing is kept.
pub(super) fn read(
    head: ChainHead,
    memory: &GuestMemory,
    counters: &Counters,
    log: &DeviceLog,
) -> Option<Sample> {
    let mut copied = Copied { bytes: [0; MAX_STATISTICS * STATISTIC_SIZE], len: 0 };
    let end = head.walk(memory, |descriptor| {
        let len = u64::from(descriptor.len());
        if descriptor.is_write_only() {
            counters.skip(SkipReason::NotReadable, len);
            return;
        }
        let whole = usize::try_from(len).unwrap_or(usize::MAX);
        match copied.read(memory, descriptor.addr(), whole) {
            Ok(0) => {}
            Ok(left_out) => counters.skip(SkipReason::TooMany, left_out as u64),
            Err(reason) => counters.skip(reason, len),
        }
    });
    let bytes = &copied.bytes[..copied.len];
    if let Err(error) = end {
        counters.skip(SkipReason::BrokenChain, bytes.len() as u64);
        DeviceLog::broken(&log.broken_statistics, "a statistics buffer", error);
        return None;
    }
    parse(bytes, counters)
}

/// The statistics in `bytes`.
fn parse(bytes: &[u8], counters: &Counters) -> Option<Sample> {
    // What drivers send at first: nothing, or an array that they have not filled yet.
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let (entries, rest) = bytes.as_chunks::<STATISTIC_SIZE>();
    if !rest.is_empty() {
        counters.skip(SkipReason::Malformed, rest.len() as u64);
    }
    let mut sample = Sample {
        values: Statistics::default(),
        unknown_tags: 0,
        at: Instant::now(),
        balloon_bytes: None,
    };
    for [t0, t1, value @ ..] in entries {
        match sample.values.slot(u16::from_le_bytes([*t0, *t1])) {
            Some(slot) => *slot = Some(u64::from_le_bytes(*value)),
            None => sample.unknown_tags += 1,
        }
    }
    (!entries.is_empty()).then_some(sample)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::chain::tests::{NEXT, TABLE, WRITE, memory, write};
    use proptest::prelude::*;
    use vm_memory::Bytes;

    const BUFFER: u64 = 0x4000;

    type Raw = (u64, u32, u32, u16);

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    fn entries(values: &[(u16, u64)]) -> Vec<u8> {
        values.iter().flat_map(|(tag, value)| entry(*tag, *value)).collect()
    }

    /// What a chain with these descriptors tells, with `bytes` in the buffer.
    fn told(descriptors: &[Raw], bytes: &[u8]) -> (Option<Sample>, Counters) {
        let memory = memory();
        write(&memory, TABLE, descriptors);
        memory.write_slice(bytes, GuestAddress(BUFFER)).unwrap();
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        let counters = Counters::default();
        (read(head, &memory, &counters, &DeviceLog::default()), counters)
    }

    /// What one buffer of these bytes tells.
    fn buffer(bytes: &[u8]) -> Option<Statistics> {
        let len = u32::try_from(bytes.len()).unwrap();
        told(&[(BUFFER, len, 0, 0)], bytes).0.map(|sample| sample.values)
    }

    #[test]
    fn every_tag_has_its_place_in_any_order() {
        let mut values: Vec<(u16, u64)> = (0..16).map(|tag| (tag, 100 + u64::from(tag))).collect();
        values.reverse();
        let told = buffer(&entries(&values)).unwrap();
        let named: Vec<Option<u64>> = told.named().map(|(_, value)| value).into();
        assert_eq!(named, (100..116).map(Some).collect::<Vec<_>>());
        let json = serde_json::to_value(told).unwrap();
        assert_eq!(json.as_object().unwrap().len(), Statistics::COUNT);
        for (name, value) in told.named() {
            assert_eq!(json[name].as_u64(), value, "{name}");
        }
    }

    #[test]
    fn what_is_not_told_is_not_known() {
        let told = buffer(&entries(&[(4, 7)])).unwrap();
        assert_eq!(told, Statistics { free_bytes: Some(7), ..Statistics::default() });
    }

    #[test]
    fn the_last_of_a_tag_counts() {
        let told = buffer(&entries(&[(5, 1), (5, u64::MAX), (4, 2), (5, 3)])).unwrap();
        assert_eq!((told.total_bytes, told.free_bytes), (Some(3), Some(2)));
    }

    #[test]
    fn unknown_tags_are_passed_over_and_counted() {
        let bytes = entries(&[(16, 1), (u16::MAX, 2), (6, 3)]);
        let (sample, counters) = told(&[(BUFFER, 30, 0, 0)], &bytes);
        let sample = sample.unwrap();
        assert_eq!(sample.unknown_tags, 2);
        assert_eq!(sample.values.available_bytes, Some(3));
        assert_eq!(counters.snapshot().all_skipped_bytes(), 0);
    }

    #[test]
    fn empty_buffers_tell_nothing() {
        for len in [0, 9, 10, 160] {
            assert!(buffer(&vec![0; len]).is_none());
        }
        // Not even one statistic.
        assert!(buffer(&[1; 9]).is_none());
        assert_eq!(buffer(&entry(0, 1)).unwrap().swapped_in_bytes, Some(1));
    }

    #[test]
    fn part_of_a_statistic_is_none() {
        let bytes = [entry(4, 7), vec![5, 0, 1]].concat();
        let (sample, counters) = told(&[(BUFFER, 13, 0, 0)], &bytes);
        let values = sample.unwrap().values;
        assert_eq!(values, Statistics { free_bytes: Some(7), ..Statistics::default() });
        assert_eq!(counters.snapshot().skipped_bytes(SkipReason::Malformed), 3);
    }

    #[test]
    fn a_buffer_is_read_across_descriptors() {
        let bytes = entries(&[(4, 1), (5, 2), (6, 3)]);
        let descriptors =
            [(BUFFER, 14, NEXT, 1), (BUFFER, 99, WRITE | NEXT, 2), (BUFFER + 14, 16, 0, 0)];
        let (sample, counters) = told(&descriptors, &bytes);
        let values = sample.unwrap().values;
        assert_eq!((values.free_bytes, values.total_bytes), (Some(1), Some(2)));
        assert_eq!(values.available_bytes, Some(3));
        assert_eq!(counters.snapshot().skipped_bytes(SkipReason::NotReadable), 99);
    }

    #[test]
    fn a_large_buffer_is_read_in_part() {
        let bytes = entries(&vec![(4, 9); 1000]);
        let descriptors = [(BUFFER, 10000, NEXT, 1), (BUFFER, 70000, 0, 0)];
        let (sample, counters) = told(&descriptors, &bytes);
        assert_eq!(sample.unwrap().values.free_bytes, Some(9));
        let most = (MAX_STATISTICS * STATISTIC_SIZE) as u64;
        assert_eq!(counters.snapshot().skipped_bytes(SkipReason::TooMany), 80000 - most);
    }

    #[test]
    fn a_buffer_that_is_not_memory_tells_nothing() {
        for at in [1 << 40, 0xffff, u64::MAX] {
            let (sample, counters) = told(&[(at, 20, NEXT, 1), (BUFFER, 10, 0, 0)], &entry(4, 7));
            assert_eq!(sample.unwrap().values.free_bytes, Some(7));
            assert_eq!(counters.snapshot().skipped_bytes(SkipReason::OutsideMemory), 20);
        }
    }

    #[test]
    fn nothing_of_a_broken_chain_is_kept() {
        let (sample, counters) = told(&[(BUFFER, 10, NEXT, 9)], &entry(4, 7));
        assert!(sample.is_none());
        assert_eq!(counters.snapshot().skipped_bytes(SkipReason::BrokenChain), 10);
    }

    proptest! {
        #[test]
        fn any_buffer_is_read(
            descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0u32..8, 0u16..10), 8),
            near in prop::collection::vec((0u64..0x2_0000, 0u32..70000, 0u32..8, 0u16..10), 8),
            bytes: Vec<u8>,
            far: bool,
        ) {
            told(if far { &descriptors } else { &near }, &bytes);
        }
    }
}
