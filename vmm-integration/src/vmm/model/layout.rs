// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the model's sections lie in memory files and regions.
//!
//! A frame's number times the page size is its address, so the layout of the address space is the
//! model's own. Behind its last section lies the driver's own memory: rings, tables, buffers. The
//! model knows nothing of that and never reports it.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use anyhow::{Result, ensure};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{Geometry, Layout, ZoneId};
use guest_driver::ram::Gpa;
use guest_driver::virtio::layout::RingLayout;
use rustix::fs::{FallocateFlags, fallocate, fstat};

use crate::guest_memory::{Backing, Ram, RamLayout};

/// The file of the memory that is there at the start.
pub(super) const BOOT_FILE: usize = 0;
/// What the rings and the area behind them take at most, beside the rings' own size.
const DRIVER_BYTES: u64 = 128 << 10;
const QUEUES: u64 = 5;
const RING_ALIGN: u64 = 4096;
/// What `st_blocks` counts in.
const STAT_BLOCK_BYTES: u64 = 512;

/// The file of a slot's memory.
pub(super) fn slot_file(slot: usize) -> usize {
    BOOT_FILE + 1 + slot
}

/// Memory that can be plugged in later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The sections that it becomes, whole memory blocks of [`Layout::sections`] that are no
    /// zone's yet.
    pub sections: Range<usize>,
    /// The zone that they go to.
    pub zone: ZoneId,
}

/// A guest's memory: its layout for the model, and its backing.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    /// The address space and what of it is online from the start.
    pub layout: Layout,
    /// The regions of the memory that is there at the start, in sections; by default the runs of
    /// sections that are online. All are in one file, and there may be memory in them that is not
    /// online.
    pub regions: Option<Vec<Range<usize>>>,
    /// Memory that can be plugged in, each in a file of its own.
    pub slots: Vec<Slot>,
    /// What the files are made of.
    pub backing: Backing,
    /// Whether transparent huge pages are asked for.
    pub huge_pages: bool,
}

impl GuestMemory {
    /// `bytes` of memory from address 0, in Linux's sizes and one zone, rounded up to sections.
    pub fn flat(bytes: u64, cpus: usize) -> Self {
        let geometry = Geometry::LINUX;
        let sections = bytes.div_ceil(section_bytes(&geometry));
        // Frames are counted in 32 bits: whatever is more is refused with the files.
        let sections = usize::try_from(sections).unwrap_or(usize::MAX);
        Self::new(Layout::flat(geometry, cpus, sections))
    }

    /// Memory for `layout` with nothing to be plugged in.
    pub fn new(layout: Layout) -> Self {
        let (regions, slots) = (None, Vec::new());
        Self { layout, regions, slots, backing: Backing::Memfd, huge_pages: false }
    }

    /// Room for `sections` more sections, to be plugged into the first zone.
    #[must_use]
    pub fn with_slot(mut self, sections: usize) -> Self {
        let start = self.layout.sections;
        self.layout.sections += sections;
        self.slots.push(Slot { sections: start..start + sections, zone: ZoneId(0) });
        self
    }

    /// The runs of sections that are online at the start, by address.
    fn online_runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<_> =
            self.layout.zones.iter().flat_map(|zone| zone.sections.iter().cloned()).collect();
        runs.retain(|run| !run.is_empty());
        runs.sort_by_key(|run| run.start);
        runs.dedup_by(|next, run| {
            let meets = next.start == run.end;
            if meets {
                run.end = next.end;
            }
            meets
        });
        runs
    }
}

/// Bytes of a section.
fn section_bytes(geometry: &Geometry) -> u64 {
    u64::from(geometry.section_pages()) * PAGE_BYTES
}

/// The files and regions of a guest, and where each region begins.
pub(super) struct Plan {
    pub(super) ram: RamLayout,
    pub(super) boot: Vec<Gpa>,
    pub(super) slots: Vec<Gpa>,
    pub(super) driver: Gpa,
}

impl Plan {
    /// # Errors
    /// When the regions do not hold what is online, or a slot is not made of whole blocks.
    pub(super) fn new(memory: &GuestMemory, queue_size: u16) -> Result<Self> {
        let geometry = memory.layout.geometry;
        let bytes = section_bytes(&geometry);
        let online = memory.online_runs();
        let boot = memory.regions.clone().unwrap_or_else(|| online.clone());
        for run in &online {
            for section in run.clone() {
                ensure!(
                    boot.iter().any(|region| region.contains(&section)),
                    "section {section} is online from the start and in no region"
                );
            }
        }
        let at = |section: usize| -> Result<Gpa> { Ok(Gpa(u64::try_from(section)? * bytes)) };
        let len =
            |sections: &Range<usize>| -> Result<u64> { Ok(u64::try_from(sections.len())? * bytes) };
        let mut ram = RamLayout::default();
        let file = ram.file(memory.backing);
        for region in &boot {
            // At its address in the file, too: what is between regions is a hole.
            let start = at(region.start)?;
            ram = ram.region(start, len(region)?, file, start.0);
        }
        for Slot { sections, .. } in &memory.slots {
            let whole = |section: usize| section.is_multiple_of(geometry.sections_per_block);
            ensure!(
                whole(sections.start) && whole(sections.end),
                "sections {sections:?} are not whole memory blocks"
            );
            ensure!(
                sections.end <= memory.layout.sections,
                "sections {sections:?} lie past the address space"
            );
            let file = ram.file(memory.backing);
            ram = ram.region(at(sections.start)?, len(sections)?, file, 0);
        }
        let driver = at(memory.layout.sections)?;
        let ring = RingLayout::contiguous_bytes(queue_size).next_multiple_of(RING_ALIGN);
        let file = ram.file(Backing::Memfd);
        ram = ram.region(driver, QUEUES * ring + DRIVER_BYTES, file, 0);
        Ok(Self {
            ram,
            boot: boot.iter().map(|region| at(region.start)).collect::<Result<_>>()?,
            slots: memory.slots.iter().map(|s| at(s.sections.start)).collect::<Result<_>>()?,
            driver,
        })
    }
}

/// What a file holds at present, in bytes.
pub(super) fn resident_bytes(file: BorrowedFd<'_>) -> Result<u64> {
    Ok(u64::try_from(fstat(file)?.st_blocks)? * STAT_BLOCK_BYTES)
}

/// Empties the file of a region, as unplugging does for the host.
pub(super) fn drop_contents(file: BorrowedFd<'_>, ram: &Ram, region: usize) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, 0, ram.regions()[region].range.len())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_driver::page_alloc::ZoneLayout;
    use guest_driver::page_alloc::ZoneType;

    fn sparse(runs: &[Range<usize>], sections: usize) -> GuestMemory {
        let layout = Layout {
            sections,
            zones: vec![ZoneLayout { node: 0, kind: ZoneType::Movable, sections: runs.to_vec() }],
            ..Layout::flat(Geometry::LINUX, 1, 0)
        };
        GuestMemory::new(layout)
    }

    #[test]
    fn adjacent_runs_are_one_region_with_the_driver_last() {
        let memory = sparse(&[4..6, 0..2, 2..3], 10).with_slot(2);
        let plan = Plan::new(&memory, 128).unwrap();
        assert_eq!(plan.boot, [Gpa(0), Gpa(4 * (128 << 20))]);
        assert_eq!(plan.slots, [Gpa(10 * (128 << 20))]);
        assert_eq!(plan.driver, Gpa(12 * (128 << 20)));
        assert!(Ram::new(&plan.ram).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let memory = sparse(&[0..1, 1..2], 4);
        let regions = Some(vec![0..1, 3..4]);
        assert!(Plan::new(&GuestMemory { regions, ..memory.clone() }, 128).is_err());
        let slots = vec![Slot { sections: 3..5, zone: ZoneId(0) }];
        assert!(Plan::new(&GuestMemory { slots, ..memory.clone() }, 128).is_err());
        let mut blocks = memory.with_slot(1);
        blocks.layout.geometry.sections_per_block = 2;
        assert!(Plan::new(&blocks, 128).is_err());
    }
}
