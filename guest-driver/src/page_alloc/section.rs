// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sparse sections: the metadata of memory that is there, and none for holes.

use alloc::boxed::Box;
use core::sync::atomic::AtomicUsize as PlainUsize;

use super::frame::Frame;
use super::geometry::{Geometry, MigrateType, Pfn, PfnRange};
use super::zone::ZoneId;
use crate::sync::{AtomicBool, AtomicU8, OnceLock, Ordering};

/// The standalone isolate bit of a pageblock (`PB_migrate_isolate`), beside its migratetype.
const ISOLATED: u8 = 1 << 7;

/// The zone of a section that was removed.
const REMOVED: usize = usize::MAX;

/// The zones of a section's frames: at most two, one behind the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zones {
    pub(crate) first: ZoneId,
    pub(crate) second: ZoneId,
    /// The first frame of the second, counted from the section's start.
    pub(crate) boundary: u32,
}

/// The metadata of one section (`struct mem_section`).
#[derive(Debug)]
pub(crate) struct Section {
    /// The zone of the frames before `boundary`. It changes only while the section is offline, when it is
    /// removed (under that zone's lock) and added again.
    first: PlainUsize,
    second: ZoneId,
    /// The section's pages, if it has one zone.
    boundary: u32,
    frames: Box<[Frame]>,
    pageblocks: Box<[AtomicU8]>,
    online: AtomicBool,
}

impl Section {
    /// The zone of the section's first frame; none if the section was removed.
    pub(crate) fn first_zone(&self) -> Option<ZoneId> {
        Some(self.first.load(Ordering::Relaxed)).filter(|&zone| zone != REMOVED).map(ZoneId)
    }

    pub(crate) fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }

    pub(crate) fn set_online(&self, online: bool) {
        self.online.store(online, Ordering::Release);
    }
}

/// Every section that there is room for.
///
/// The frames of one that was removed stay, all of them absent: a reader without a lock may have looked up
/// the section before. To every other lookup it is as if it had never been added.
#[derive(Debug)]
pub(crate) struct Sections {
    geometry: Geometry,
    sections: Box<[OnceLock<Section>]>,
}

impl Sections {
    pub(crate) fn new(geometry: Geometry, count: usize) -> Self {
        Self { geometry, sections: (0..count).map(|_| OnceLock::new()).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.sections.len()
    }

    /// Gives a section its metadata; its frames are absent until it comes online. One that is present
    /// keeps its zones.
    pub(crate) fn add(&self, index: usize, zones: Zones) {
        let Zones { first, second, boundary } = zones;
        if let Some(section) = self.sections[index].get() {
            if section.first_zone().is_none() {
                self.set_pageblocks(section, MigrateType::Movable as u8);
                section.first.store(first.0, Ordering::Relaxed);
            }
            return;
        }
        let frames = (0..self.geometry.section_pages()).map(|_| Frame::absent()).collect();
        let movable = MigrateType::Movable as u8;
        let blocks = self.geometry.section_blocks();
        let pageblocks = (0..blocks).map(|_| AtomicU8::new(movable)).collect();
        let online = AtomicBool::new(false);
        let first = PlainUsize::new(first.0);
        // The hotplug lock is held, so that nothing else sets it.
        let _ = self.sections[index].set(Section {
            first,
            second,
            boundary,
            frames,
            pageblocks,
            online,
        });
    }

    /// Takes the metadata of an offline section away. Under its zone's lock.
    pub(crate) fn remove(&self, section: &Section) {
        self.set_pageblocks(section, MigrateType::Movable as u8 | ISOLATED);
        section.first.store(REMOVED, Ordering::Relaxed);
    }

    fn set_pageblocks(&self, section: &Section, bits: u8) {
        section.pageblocks.iter().for_each(|block| block.store(bits, Ordering::Relaxed));
    }

    /// A section that is present.
    pub(crate) fn get(&self, section: usize) -> Option<&Section> {
        self.sections.get(section)?.get().filter(|section| section.first_zone().is_some())
    }

    /// The section's index, whether or not it is there.
    pub(crate) fn index_of(&self, pfn: Pfn) -> usize {
        (pfn.0 >> self.geometry.section_order) as usize
    }

    /// The section of a frame, present or removed.
    pub(crate) fn of(&self, pfn: Pfn) -> Option<&Section> {
        self.sections.get(self.index_of(pfn))?.get()
    }

    /// The zone of a frame in use, whose section is therefore present.
    pub(crate) fn zone_in(&self, section: &Section, pfn: Pfn) -> ZoneId {
        match self.within(pfn) < section.boundary {
            true => ZoneId(section.first.load(Ordering::Relaxed)),
            false => section.second,
        }
    }

    /// The zone of a frame; none if its section is not present. Read without a lock, it was true a moment
    /// ago.
    pub(crate) fn zone(&self, pfn: Pfn) -> Option<ZoneId> {
        let section = self.of(pfn)?;
        Some(self.zone_in(section, pfn)).filter(|zone| zone.0 != REMOVED)
    }

    /// The frames of a section that is present by their zones: one run, or two.
    pub(crate) fn by_zone(&self, index: usize) -> impl Iterator<Item = (ZoneId, PfnRange)> + use<> {
        let PfnRange { start, end } = self.geometry.section_range(index);
        let runs = self.get(index).and_then(|section| {
            let middle = start.plus(section.boundary);
            let first = (section.first_zone()?, PfnRange { start, end: middle });
            Some([first, (section.second, PfnRange { start: middle, end })])
        });
        runs.into_iter().flatten().filter(|(_, range)| range.pages() > 0)
    }

    /// The zone of a section that has one.
    pub(crate) fn only_zone(&self, index: usize) -> Option<ZoneId> {
        let section = self.get(index)?;
        section.first_zone().filter(|_| section.boundary == self.geometry.section_pages())
    }

    fn within(&self, pfn: Pfn) -> u32 {
        pfn.0 & (self.geometry.section_pages() - 1)
    }

    pub(crate) fn frame(&self, pfn: Pfn) -> Option<&Frame> {
        self.of(pfn).map(|section| self.frame_in(section, pfn))
    }

    /// The same, with the section at hand.
    pub(crate) fn frame_in<'a>(&self, section: &'a Section, pfn: Pfn) -> &'a Frame {
        &section.frames[self.within(pfn) as usize]
    }

    /// The frames of `range`, which lies in one section; none if that was never added.
    pub(crate) fn frames(&self, range: PfnRange) -> &[Frame] {
        let at = self.within(range.start) as usize;
        self.of(range.start).map_or(&[], |of| &of.frames[at..at + range.pages() as usize])
    }

    fn pageblock(&self, pfn: Pfn) -> Option<&AtomicU8> {
        self.of(pfn).map(|section| self.pageblock_in(section, pfn))
    }

    fn pageblock_in<'a>(&self, section: &'a Section, pfn: Pfn) -> &'a AtomicU8 {
        &section.pageblocks[(self.within(pfn) >> self.geometry.pageblock_order) as usize]
    }

    /// The migratetype of a frame's pageblock; [`MigrateType::Isolate`] while it is isolated
    /// (`get_pageblock_migratetype`). Read without a lock, it was true a moment ago.
    pub(crate) fn migratetype(&self, pfn: Pfn) -> MigrateType {
        self.of(pfn).map_or(MigrateType::Isolate, |section| self.migratetype_in(section, pfn))
    }

    /// The same, with the section at hand.
    pub(crate) fn migratetype_in(&self, section: &Section, pfn: Pfn) -> MigrateType {
        match self.pageblock_in(section, pfn).load(Ordering::Relaxed) {
            bits if bits & ISOLATED == 0 => MigrateType::from_bits(bits),
            _ => MigrateType::Isolate,
        }
    }

    /// The migratetype that the pageblock has, or will have again.
    pub(crate) fn underlying_migratetype(&self, pfn: Pfn) -> MigrateType {
        let bits = self.pageblock(pfn).map_or(0, |block| block.load(Ordering::Relaxed));
        MigrateType::from_bits(bits & !ISOLATED)
    }

    /// Under the zone's lock.
    pub(crate) fn set_migratetype(&self, pfn: Pfn, migratetype: MigrateType) {
        if let Some(block) = self.pageblock(pfn) {
            let isolated = block.load(Ordering::Relaxed) & ISOLATED;
            block.store(migratetype as u8 | isolated, Ordering::Relaxed);
        }
    }

    /// Under the zone's lock.
    pub(crate) fn set_isolated(&self, pfn: Pfn, isolated: bool) {
        if let Some(block) = self.pageblock(pfn) {
            let bits = block.load(Ordering::Relaxed) & !ISOLATED;
            block.store(if isolated { bits | ISOLATED } else { bits }, Ordering::Relaxed);
        }
    }

    pub(crate) fn metadata_bytes(&self) -> usize {
        let table = self.sections.len() * size_of::<OnceLock<Section>>();
        let of =
            |section: &Section| size_of_val(&*section.frames) + size_of_val(&*section.pageblocks);
        table + (0..self.len()).filter_map(|index| self.get(index)).map(of).sum::<usize>()
    }
}
