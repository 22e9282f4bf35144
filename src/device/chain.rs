// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Walks the descriptors of a chain (virtio 1.3, sections 2.7.5 and 2.7.13), as a guest wrote them.
//!
//! The iterator of `virtio-queue` ends in silence where a chain is broken, and at 4 GiB: a guest
//! with 512 MiB pageblocks passes that with nine ranges. This walk takes a chain of any number of
//! bytes, and tells a whole chain from a broken one.

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_NEXT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::discard::{GuestMemory, peek};

/// Where a chain begins, and in which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainHead {
    /// Guest address of the queue's descriptor table.
    pub table: GuestAddress,
    /// Number of descriptors in that table.
    pub queue_size: u16,
    /// Index of the chain's first descriptor.
    pub index: u16,
}

/// What is to become of a chain that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes back to the driver at once, with used length 0: nothing was written.
    Return,
    /// It goes back at once with this used length.
    Written(u32),
    /// It stays with the device until it is asked for: a statistics buffer, with which the device
    /// says later that it wants the next (virtio 1.3, 5.5.6.3).
    Keep,
}

/// How a chain breaks the rules. The guest's mistake, or its malice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    /// A descriptor lies outside the guest's memory.
    #[error("descriptor {0} is not in guest memory")]
    Unreadable(u16),
    /// The memory file that holds a descriptor cannot be read.
    #[error("descriptor {0} cannot be read from its memory file")]
    FileUnreadable(u16),
    /// An index is past the end of the descriptor table.
    #[error("descriptor {0} is past the end of the table")]
    PastTable(u16),
    /// More descriptors than the queue has: a loop, or a driver that ignores section 2.7.13.1.
    #[error("more descriptors than the queue holds")]
    TooLong,
    /// An indirect table within an indirect table.
    #[error("an indirect table within an indirect table")]
    NestedIndirect,
    /// An indirect table whose length is not a multiple of a descriptor, or zero.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// `VIRTQ_DESC_F_INDIRECT` together with `VIRTQ_DESC_F_NEXT`.
    #[error("an indirect table that is not the end of its chain")]
    IndirectWithNext,
}

/// Size of a descriptor in bytes.
const DESCRIPTOR_SIZE: u32 = 16;
const DESCRIPTOR_BYTES: usize = size_of::<Descriptor>();
const _: () = assert!(DESCRIPTOR_BYTES == 16);
/// Descriptors of an indirect table that are read at a time; Linux reports 32 ranges a chain.
const WINDOW: usize = 128;

impl ChainHead {
    /// Calls `visit` with each descriptor that names a buffer, in the order of the chain.
    ///
    /// # Errors
    /// [`ChainError`] where the chain breaks; `visit` was called for the descriptors before.
    pub(crate) fn walk(
        self,
        memory: &GuestMemory,
        mut visit: impl FnMut(Descriptor),
    ) -> Result<(), ChainError> {
        let mut table_len = u32::from(self.queue_size);
        let mut indirect: Option<IndirectTable> = None;
        let mut index = self.index;
        // A chain is never longer than the queue, its indirect table included (2.7.5.3.1).
        for _ in 0..self.queue_size {
            if u32::from(index) >= table_len {
                return Err(ChainError::PastTable(index));
            }
            let mut descriptor = match &mut indirect {
                Some(table) => table.read(memory, index)?,
                None => read(memory, self.table, index)?,
            };
            if descriptor.refers_to_indirect_table() {
                if indirect.is_some() {
                    return Err(ChainError::NestedIndirect);
                }
                if descriptor.flags() & u16::try_from(VRING_DESC_F_NEXT).unwrap_or(0) != 0 {
                    return Err(ChainError::IndirectWithNext);
                }
                let len = descriptor.len();
                if len == 0 || len % DESCRIPTOR_SIZE != 0 {
                    return Err(ChainError::IndirectLength(len));
                }
                table_len = len / DESCRIPTOR_SIZE;
                let table = IndirectTable::new(descriptor.addr(), table_len);
                descriptor = indirect.insert(table).read(memory, 0)?;
                if descriptor.refers_to_indirect_table() {
                    return Err(ChainError::NestedIndirect);
                }
            }
            visit(descriptor);
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(ChainError::TooLong)
    }
}

/// An indirect table, which is read without populating the guest's memory, a window at a time.
struct IndirectTable {
    start: GuestAddress,
    len: u32,
    /// Descriptors from `first` on, of which `filled` were read.
    window: [[u8; DESCRIPTOR_BYTES]; WINDOW],
    first: u16,
    filled: usize,
}

impl IndirectTable {
    fn new(start: GuestAddress, len: u32) -> Self {
        Self { start, len, window: [[0; DESCRIPTOR_BYTES]; WINDOW], first: 0, filled: 0 }
    }

    /// Reads descriptor `index`, which the table has.
    fn read(&mut self, memory: &GuestMemory, index: u16) -> Result<Descriptor, ChainError> {
        let place = index.checked_sub(self.first).map(usize::from);
        if let Some(bytes) = place.and_then(|place| self.window[..self.filled].get(place)) {
            return Ok(descriptor(bytes));
        }
        let left = usize::try_from(self.len - u32::from(index)).unwrap_or(WINDOW);
        let wanted = self.window[..left.min(WINDOW)].as_flattened_mut();
        (self.first, self.filled) = (index, 0);
        let at = u64::from(index) * u64::from(DESCRIPTOR_SIZE);
        let at = self.start.checked_add(at).ok_or(ChainError::Unreadable(index))?;
        let read = peek(memory, at, wanted).map_err(|_| ChainError::FileUnreadable(index))?;
        self.filled = read / DESCRIPTOR_BYTES;
        self.window[..self.filled].first().map(descriptor).ok_or(ChainError::Unreadable(index))
    }
}

/// A descriptor as it lies in memory (virtio 1.3, 2.7.5), little-endian.
fn descriptor(bytes: &[u8; DESCRIPTOR_BYTES]) -> Descriptor {
    let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *bytes;
    Descriptor::new(
        u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        u32::from_le_bytes([l0, l1, l2, l3]),
        u16::from_le_bytes([f0, f1]),
        u16::from_le_bytes([n0, n1]),
    )
}

/// Reads descriptor `index` of the queue's own table at `table`, once: the guest may change it
/// meanwhile.
fn read(memory: &GuestMemory, table: GuestAddress, index: u16) -> Result<Descriptor, ChainError> {
    table
        .checked_add(u64::from(index) * u64::from(DESCRIPTOR_SIZE))
        .and_then(|address| memory.read_obj(address).ok())
        .ok_or(ChainError::Unreadable(index))
}

#[cfg(test)]
mod exhaustive;
#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::discard::GuestRegion;
    use proptest::prelude::*;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE};
    use vm_memory::{FileOffset, MmapRegion};

    pub(in super::super) const NEXT: u32 = VRING_DESC_F_NEXT;
    const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
    pub(in super::super) const WRITE: u32 = VRING_DESC_F_WRITE;
    pub(in super::super) const TABLE: u64 = 0x1000;
    const OTHER: u64 = 0x2000;

    /// (address, length, flags, next)
    type Raw = (u64, u32, u32, u16);

    /// 64 KiB of guest memory from address 0 on.
    pub(in super::super) fn memory() -> GuestMemory {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x10000).unwrap();
        let region = MmapRegion::from_file(FileOffset::new(file, 0), 0x10000).unwrap();
        GuestMemory::from_regions(vec![GuestRegion::new(region, GuestAddress(0)).unwrap()]).unwrap()
    }

    /// Writes descriptors to the table at `table`.
    pub(in super::super) fn write(memory: &GuestMemory, table: u64, descriptors: &[Raw]) {
        for (i, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
            let descriptor = Descriptor::new(addr, len, u16::try_from(flags).unwrap(), next);
            memory.write_obj(descriptor, GuestAddress(table + 16 * i as u64)).unwrap();
        }
    }

    /// The addresses of a chain in a queue of eight, and how its walk ended.
    fn walk(direct: &[Raw], indirect: &[Raw], index: u16) -> (Vec<u64>, Result<(), ChainError>) {
        let memory = memory();
        write(&memory, TABLE, direct);
        write(&memory, OTHER, indirect);
        let mut seen = Vec::new();
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index };
        let end = head.walk(&memory, |descriptor| seen.push(descriptor.addr().0));
        (seen, end)
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let chain = [(10, 1, WRITE | NEXT, 2), (0, 0, 0, 0), (30, 1, WRITE, 7)];
        assert_eq!(walk(&chain, &[], 0), (vec![10, 30], Ok(())));
    }

    #[test]
    fn an_indirect_table_ends_a_chain_or_is_all_of_it() {
        let table = [(10, 1, WRITE | NEXT, 1), (20, 1, WRITE, 0)];
        assert_eq!(walk(&[(OTHER, 32, INDIRECT, 0)], &table, 0), (vec![10, 20], Ok(())));
        let direct = [(5, 1, WRITE | NEXT, 1), (OTHER, 32, INDIRECT, 0)];
        assert_eq!(walk(&direct, &table, 0), (vec![5, 10, 20], Ok(())));
    }

    #[test]
    fn a_chain_of_more_than_four_gib_is_whole() {
        let chain: Vec<Raw> =
            (0..8).map(|i| (0, u32::MAX, if i < 7 { NEXT } else { 0 }, i + 1)).collect();
        assert_eq!(walk(&chain, &[], 0).1, Ok(()));
    }

    #[test]
    fn broken_chains_are_named() {
        use ChainError::*;
        let indirect = |len, flags| vec![(OTHER, len, INDIRECT | flags, 0)];
        for (direct, table, index, error) in [
            (vec![], vec![], 8, PastTable(8)),
            (vec![(0, 1, NEXT, 8)], vec![], 0, PastTable(8)),
            (vec![(0, 1, NEXT, 0)], vec![], 0, TooLong),
            (vec![(0, 1, NEXT, 1), (0, 1, NEXT, 0)], vec![], 0, TooLong),
            (indirect(0, 0), vec![], 0, IndirectLength(0)),
            (indirect(24, 0), vec![], 0, IndirectLength(24)),
            (indirect(16, NEXT), vec![], 0, IndirectWithNext),
            (indirect(16, 0), vec![(OTHER, 16, INDIRECT, 0)], 0, NestedIndirect),
            (indirect(32, 0), vec![(0, 1, NEXT, 1), (OTHER, 16, INDIRECT, 0)], 0, NestedIndirect),
            (indirect(32, 0), vec![(0, 1, NEXT, 2)], 0, PastTable(2)),
            (indirect(32, 0), vec![(0, 1, NEXT, 0)], 0, TooLong),
            (vec![(1 << 40, 16, INDIRECT, 0)], vec![], 0, Unreadable(0)),
            (vec![(u64::MAX, 32, INDIRECT, 0)], vec![], 0, Unreadable(0)),
        ] {
            assert_eq!(walk(&direct, &table, index).1, Err(error));
        }
    }

    proptest! {
        /// Whatever lies in guest memory, a walk ends after at most as many descriptors as the
        /// queue has.
        #[test]
        fn any_table_ends(
            direct in prop::collection::vec((any::<u64>(), any::<u32>(), 0u32..8, 0u16..10), 8),
            indirect in prop::collection::vec((any::<u64>(), any::<u32>(), 0u32..8, 0u16..10), 8),
            at_other in any::<bool>(),
            index: u16,
        ) {
            let mut direct = direct;
            if at_other { direct[0] = (OTHER, 128, INDIRECT, 0) }
            let (seen, _) = walk(&direct, &indirect, index % 9);
            prop_assert!(seen.len() <= 8);
        }
    }
}
