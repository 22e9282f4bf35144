// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model's half.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{
    AllocRequest, Geometry, Layout, MigrateType, Mm, MovePages, OfflineError, PcpSizes, Pfn,
    SharedSection, ZoneId, ZoneLayout, ZoneType,
};
use guest_driver::reporting::{Config, Holding, Reporter, TrackerKind};
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelVm, ReporterThread};

use super::{
    CPUS, Guest, MIB, Sizes, figures, halves_figure, lists_figure, offline_figures, passes, rest,
};
use crate::faults::device::FaultyDevice;
use crate::faults::plan::FaultPlan;
use crate::race::zoneinfo::CpuLists;
use crate::store::Findings;

const CPU: usize = 0;
/// As Linux prefers them: DMA32, and DMA with the first 16 MiB.
const ZONE: ZoneId = ZoneId(0);
const DMA: ZoneId = ZoneId(1);
const DMA_PAGEBLOCKS: usize = 8;
/// Largest blocks of which others use a half, in one of the guests.
const OCCUPIED: usize = 8;
/// The section of a zone whose size is that of one of Linux's: 4 MiB.
const SMALL_SECTION_ORDER: u8 = 10;

/// Nothing can be moved: what is in use is unmovable.
struct Nobody;

impl MovePages for Nobody {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

/// Uses memory and frees it in one of the guests that are the model.
pub(super) fn run(memory: u64, freed: u64, case: Guest) -> Result<Findings> {
    let device = FaultyDevice::start(FaultPlan::default())?;
    let guest = memory_as_linux_has(memory)?;
    let mut vm = ModelVm::start(&device.socket(), ModelConfig::new(guest))?;
    let queue = vm.take_reporting()?;
    let (tracker, holding) = match case.isolating() {
        Some(tracker) => (tracker, Holding::Isolate),
        None => (TrackerKind::ReportedFlag, Holding::Pull),
    };
    let config = Config { tracker, holding, ..Config::default() };
    let mm = Arc::clone(vm.mm());
    let reporter = ReporterThread::start(Reporter::new(Arc::clone(&mm), config)?, queue)?;
    rest(&device)?;
    let occupied = matches!(case, Guest::ModelOccupied | Guest::ModelIsolatingOccupied);
    if occupied {
        occupy(&mm)?;
        rest(&device)?;
    }
    let halves = free_pageblocks(&mm);
    // Base pages, as an agent's allocation is where there are no transparent huge pages.
    let mut pages = Vec::new();
    for _ in 0..freed / PAGE_BYTES {
        pages.push(mm.alloc(CPU, AllocRequest::movable(0))?);
    }
    rest(&device)?;
    pages.drain(..).for_each(|page| mm.free(CPU, page));
    let after_free = on_lists(&mm);
    if occupied || case == Guest::ModelDrained {
        [ZONE, DMA].into_iter().for_each(|zone| mm.drain_all(zone));
    }
    let mut findings = figures(&passes(rest(&device)?));
    halves_figure(&mut findings, halves);
    lists_figure(&mut findings, "after-free", "when all was freed", after_free);
    lists_figure(&mut findings, "at-rest", "when nothing more was reported", on_lists(&mm));
    sizes(&mm).figures("", "", &mut findings);
    reporter.stop()?;
    let last = usize::try_from(memory / (128 * MIB))? - 1;
    let free = mm.offline_block(last, &Nobody, &|| false);
    let mut request = AllocRequest::movable(0);
    request.migratetype = MigrateType::Unmovable;
    let page = mm.alloc(CPU, request)?;
    let block = usize::try_from(page.address() / (128 * MIB))?;
    let unmovable = match mm.offline_block(block, &Nobody, &|| false) {
        Ok(()) => "it went offline",
        Err(OfflineError::Busy) => "EBUSY",
        Err(OfflineError::Invalid) => "EINVAL",
        Err(OfflineError::Interrupted) => "EINTR",
    };
    offline_figures(&mut findings, free.is_ok(), unmovable);
    Ok(findings)
}

/// Memory from address 0 in the zones of a Linux guest of up to 3 GiB.
fn memory_as_linux_has(bytes: u64) -> Result<GuestMemory> {
    let mut guest = GuestMemory::flat(bytes, CPUS as usize);
    let sections = guest.layout.sections;
    ensure!(sections > 1, "{bytes} bytes are one section");
    guest.layout.zones = vec![normal(1..sections), normal(0..0)];
    let boundary_block = DMA_PAGEBLOCKS;
    guest.layout.shared =
        vec![SharedSection { section: 0, first: DMA, second: ZONE, boundary_block }];
    guest.regions = Some(std::iter::once(0..sections).collect());
    Ok(guest)
}

/// A zone for any page, as all of a Linux guest's are without options.
fn normal(sections: Range<usize>) -> ZoneLayout {
    ZoneLayout { node: 0, kind: ZoneType::Normal, sections: vec![sections] }
}

/// Takes one half of some of the largest blocks, so that the other half cannot merge.
fn occupy(mm: &Mm) -> Result<()> {
    let order = mm.geometry().pageblock_order;
    let mut taken = Vec::new();
    for _ in 0..2 * OCCUPIED {
        taken.push(mm.alloc(CPU, AllocRequest::movable(order))?);
    }
    taken.sort_unstable();
    taken.retain(|block| block.is_aligned(order + 1));
    ensure!(taken.len() >= OCCUPIED, "{} halves of {OCCUPIED}", taken.len());
    taken.into_iter().for_each(|block| mm.free(CPU, block));
    [ZONE, DMA].into_iter().for_each(|zone| mm.drain_all(zone));
    Ok(())
}

/// Free blocks of exactly a pageblock: their neighbor is in use.
fn free_pageblocks(mm: &Mm) -> u64 {
    let order = mm.geometry().pageblock_order;
    let sections = (0..mm.section_count()).map(|section| mm.geometry().section_range(section));
    let blocks = sections.flat_map(|range| range.step(order));
    blocks.filter(|&block| mm.state(block).buddy_order() == Some(order)).count() as u64
}

fn on_lists(mm: &Mm) -> u64 {
    mm.zone(ZONE).pcp_sizes().map(|lists| u64::from(lists.count)).sum()
}

fn sizes(mm: &Mm) -> Sizes {
    let zone = mm.zone(ZONE);
    let marks = zone.watermarks();
    let PcpSizes { count, high, high_min, high_max, batch } =
        zone.pcp_sizes().next().unwrap_or_default();
    let [count, high, high_min, high_max, batch] =
        [count, high, high_min, high_max, batch].map(u64::from);
    Sizes {
        managed: zone.managed_pages(),
        watermarks: [marks.min, marks.low, marks.high],
        lists: CpuLists { count, high, high_min, high_max, batch },
    }
}

/// The sizes that the model gives a zone of so many pages beside a DMA zone, rounded down to 4 MiB.
///
/// # Errors
/// If there is no such zone.
pub(super) fn sizes_of(managed: u64) -> Result<Sizes> {
    let geometry = Geometry { section_order: SMALL_SECTION_ORDER, ..Geometry::LINUX };
    let dma = DMA_PAGEBLOCKS << geometry.pageblock_order >> SMALL_SECTION_ORDER;
    let sections = dma + usize::try_from(managed >> SMALL_SECTION_ORDER)?;
    let layout = Layout {
        zones: vec![normal(dma..sections), normal(0..dma)],
        ..Layout::flat(geometry, CPUS as usize, sections)
    };
    Ok(sizes(&Mm::new(&layout)))
}
