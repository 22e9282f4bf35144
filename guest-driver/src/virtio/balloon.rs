// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon device as its driver sees it (virtio 1.2, 5.5).

/// The device's identifier (virtio 1.2, 5).
pub const DEVICE_ID: u32 = 5;

/// The device's feature bits, as masks (virtio 1.2, 5.5.3).
pub mod feature {
    /// The driver must deflate pages before it uses them.
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    /// A virtqueue for memory statistics.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The balloon deflates when the guest runs out of memory.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// Free page hinting.
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// The guest says what it fills free pages with.
    pub const PAGE_POISON: u64 = 1 << 4;
    /// Free page reporting.
    pub const REPORTING: u64 = 1 << 5;
    /// Proposed for virtio: the used length of a report is the sum of its buffers if the device has
    /// initialized all of them, else 0 (virtio-spec issue 244).
    pub const DEVICE_INIT_REPORTED: u64 = 1 << 6;
    /// Proposed for virtio: a bitmap behind a list of inflated pages says which of them the device has
    /// initialized (virtio-spec issue 242).
    pub const DEVICE_INIT_ON_INFLATE: u64 = 1 << 7;
}

/// The device's virtqueues (virtio 1.2, 5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonQueue {
    /// Pages that the guest gives away.
    Inflate,
    /// Pages that it takes back.
    Deflate,
    /// Memory statistics, only with [`feature::STATS_VQ`].
    Stats,
    /// Hinted free pages, only with [`feature::FREE_PAGE_HINT`].
    FreePage,
    /// Reported free pages, only with [`feature::REPORTING`].
    Reporting,
}

impl BalloonQueue {
    /// Every queue, in the specification's order.
    pub const ALL: [Self; 5] =
        [Self::Inflate, Self::Deflate, Self::Stats, Self::FreePage, Self::Reporting];

    /// The feature that the queue exists with, 0 for those that always exist.
    pub const fn feature(self) -> u64 {
        match self {
            Self::Inflate | Self::Deflate => 0,
            Self::Stats => feature::STATS_VQ,
            Self::FreePage => feature::FREE_PAGE_HINT,
            Self::Reporting => feature::REPORTING,
        }
    }
}

/// How a queue that a missing feature leaves out counts for the index of those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueNumbering {
    /// It takes no index: Linux's transports (`vp_find_vqs_msix`) number what was negotiated.
    Linux,
    /// It keeps its index: the specification's table reads 0 to 4, whatever was negotiated.
    Specification,
}

impl QueueNumbering {
    /// The index of `queue` under the `acked` features, `None` where those leave it out.
    pub fn index(self, queue: BalloonQueue, acked: u64) -> Option<u16> {
        let exists = |queue: &BalloonQueue| acked & queue.feature() == queue.feature();
        exists(&queue).then(|| {
            let before = BalloonQueue::ALL.iter().take_while(|other| **other != queue);
            let counted = before.filter(|other| self == Self::Specification || exists(other));
            counted.fold(0, |index, _| index + 1)
        })
    }
}

/// The device's configuration space (virtio 1.2, 5.5.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Pages of 4096 bytes that the device wants in the balloon.
    pub num_pages: u32,
    /// Pages of 4096 bytes that the driver says are in it.
    pub actual: u32,
    /// The device's present request for hints.
    pub free_page_hint_cmd_id: u32,
    /// What the guest fills free pages with, read by the device where
    /// [`feature::PAGE_POISON`] was acked.
    pub poison_val: u32,
}

impl BalloonConfig {
    /// The space's length in bytes.
    pub const BYTES: usize = 16;
    /// Where `actual` lies, in bytes from the start.
    pub const ACTUAL_OFFSET: u32 = 4;
    /// Where `poison_val` lies, in bytes from the start.
    pub const POISON_VAL_OFFSET: u32 = 12;

    /// Reads the little-endian space.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let field = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            num_pages: field(0),
            actual: field(4),
            free_page_hint_cmd_id: field(8),
            poison_val: field(12),
        }
    }

    /// The little-endian space.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let fields = [self.num_pages, self.actual, self.free_page_hint_cmd_id, self.poison_val];
        let mut bytes = [0; Self::BYTES];
        for (slot, field) in bytes.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_numbers_what_was_negotiated() {
        let index = |acked| QueueNumbering::Linux.index(BalloonQueue::Reporting, acked);
        assert_eq!(index(feature::REPORTING), Some(2));
        assert_eq!(index(feature::REPORTING | feature::STATS_VQ), Some(3));
        assert_eq!(
            index(feature::REPORTING | feature::STATS_VQ | feature::FREE_PAGE_HINT),
            Some(4)
        );
        assert_eq!(index(feature::STATS_VQ), None);
        assert_eq!(QueueNumbering::Linux.index(BalloonQueue::Inflate, 0), Some(0));
    }

    #[test]
    fn specification_keeps_indices_of_absent_queues() {
        let index = |queue| QueueNumbering::Specification.index(queue, feature::REPORTING);
        assert_eq!(index(BalloonQueue::Reporting), Some(4));
        assert_eq!(index(BalloonQueue::Deflate), Some(1));
        assert_eq!(index(BalloonQueue::Stats), None);
    }

    #[test]
    fn the_configuration_survives_the_wire() {
        let config = BalloonConfig {
            num_pages: 1,
            actual: 0x0203_0405,
            free_page_hint_cmd_id: 6,
            poison_val: 0xaaaa_aaaa,
        };
        assert_eq!(BalloonConfig::from_bytes(&config.to_bytes()), config);
        assert_eq!(config.to_bytes()[12..], [0xaa; 4]);
    }
}
