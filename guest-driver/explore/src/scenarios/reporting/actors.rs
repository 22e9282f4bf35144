// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The actors of a scenario.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::invariant::Holds;
use super::setting::{CpuPlan, Patience};
use super::world::World;
use guest_driver::page_alloc::{
    AllocRequest, IsolateMode, MigrateType, OfflineError, Pfn, PfnRange, ZoneId,
};
use guest_driver::random::Random;
use guest_driver::sync;

/// How often an offliner may find its range not free when no other can free anything.
const PATIENCE: usize = 20;

/// A CPU that allocates blocks of `orders` and frees them, `steps` times, with at most `most`
/// of them at once; at the end it frees what it holds, but for those that it keeps.
pub(super) fn cpu(world: &World, cpu: usize, plan: &CpuPlan, mut random: Random) {
    let mut owned = 0;
    for _ in 0..plan.steps {
        if world.run.is_over() {
            return;
        }
        if owned < plan.most && (owned == 0 || random.index(2) == 0) {
            let order = plan.orders[random.index(plan.orders.len())];
            let mut request = AllocRequest::movable(order);
            if plan.unmovable && random.index(2) == 0 {
                request.migratetype = MigrateType::Unmovable;
            }
            let zeroed = plan.zeroed && random.index(2) == 0;
            owned += usize::from(world.allocate_as(cpu, request, zeroed));
        } else {
            world.free(cpu, random.index(owned));
            owned -= 1;
        }
    }
    for _ in plan.keep..owned {
        world.free(cpu, 0);
    }
}

/// Takes `pages` single pages for good.
pub(super) fn hog(world: &World, cpu: usize, pages: usize) {
    for _ in 0..pages {
        world.allocate(cpu, AllocRequest::movable(0));
    }
}

/// Gives the cpuset of all tasks these nodes, one set after the other.
pub(super) fn update_cpuset(world: &World, updates: &[&[u8]]) {
    for mems in updates {
        if world.run.is_over() {
            return;
        }
        world.update_cpuset(mems);
        sync::yield_now();
    }
}

/// Frees a block of the largest order, as a guest does sooner or later.
pub(super) fn nudge(world: &World) -> Option<Pfn> {
    let request = AllocRequest::movable(world.mm.geometry().max_order);
    world.allocate(0, request).then(|| world.free_last(0))
}

/// The memory block, of one section, that a page is in.
pub(super) fn memory_block(world: &World, pfn: Pfn) -> usize {
    (pfn.0 >> world.mm.geometry().section_order) as usize
}

/// Inflates by two pages, of which the host discards the first and says so, and deflates.
pub(super) fn balloon(world: &World) {
    let World { mm, pages, .. } = world;
    let cpu = world.other_cpu();
    for _ in 0..2 {
        let page = || mm.alloc(cpu, AllocRequest::movable(0)).ok();
        let inflated: Vec<PfnRange> =
            std::iter::from_fn(page).take(2).map(|pfn| PfnRange::block(pfn, 0)).collect();
        let content = world.content();
        inflated.iter().for_each(|&page| pages.allocated(page, u32::MAX, content));
        sync::yield_now();
        if let Some(&first) = inflated.first() {
            pages.clear(first);
            mm.mark_zero(first);
        }
        sync::yield_now();
        for (index, &page) in inflated.iter().enumerate() {
            pages.freed(page, if index == 0 { 0 } else { content });
            mm.free(cpu, page.start);
        }
    }
}

/// Takes a memory block off- and online again; with `remove` it is gone in between, and comes back to
/// another zone.
pub(super) fn offliner(world: &World, block: usize, patience: Patience, remove: bool) {
    let range = world.mm.geometry().section_range(block);
    for _ in 0..3 {
        let tries = AtomicUsize::new(0);
        let alone = AtomicUsize::new(0);
        let give_up = || {
            // Others that wait for memory to be on- or offline cannot free anything.
            let others = world.run.running() - 1 - world.mm.hotplug_waiters();
            if others == 0 && alone.fetch_add(1, Ordering::Relaxed) == PATIENCE {
                let what = format!("{range:?} stays in use, and all others are done or wait");
                world.run.violate(Holds::OffliningEnds, what);
            }
            let tries = tries.fetch_add(1, Ordering::Relaxed);
            world.run.is_over() || (patience == Patience::Short && tries > 1)
        };
        match world.mm.offline_block(block, world, &give_up) {
            Ok(()) => {
                gone_offline(world, block);
                sync::yield_now();
                if remove {
                    replace(world, block);
                }
                if let Err(error) = world.mm.online_block(block) {
                    let what = format!("{range:?} does not come online: {error}");
                    world.run.violate(Holds::OffliningEnds, what);
                }
                return;
            }
            Err(OfflineError::Busy) => sync::yield_now(),
            Err(_) => return,
        }
    }
}

/// Books that a memory block has gone offline, and checks that nothing of it is remembered.
pub(super) fn gone_offline(world: &World, block: usize) {
    world.pages.forget(world.mm.geometry().section_range(block));
    if world.memory.has_section(block) {
        let what = format!("something of section {block}, which is offline, is marked");
        world.run.violate(Holds::OfflineSectionForgotten, what);
    }
}

/// Removes an offline section, and adds it to the next zone.
fn replace(world: &World, section: usize) {
    let World { mm, run, .. } = world;
    let first = mm.geometry().section_range(section).start;
    let zone = mm.zone_of(first).map_or(0, |zone| zone.0);
    if let Err(error) = mm.remove_section(section) {
        run.violate(Holds::OffliningEnds, format!("section {section} stays: {error}"));
    }
    if mm.zone_of(first).is_some() || world.memory.has_section(section) {
        let what = format!("something of section {section}, which is removed, is left");
        run.violate(Holds::OfflineSectionForgotten, what);
    }
    sync::yield_now();
    mm.add_section(section, ZoneId((zone + 1) % mm.zone_count()));
}

/// Allocates `range` as a whole, twice, and frees it.
pub(super) fn contig(world: &World, range: PfnRange, mode: IsolateMode) {
    for _ in 0..2 {
        if world.mm.alloc_contig_range(range, mode, world).is_ok() {
            let content = world.content();
            world.pages.allocated(range, u32::MAX, content);
            sync::yield_now();
            world.pages.freed(range, content);
            world.mm.free_contig_range(world.other_cpu(), range);
        }
        sync::yield_now();
    }
}

/// Isolates `range` and releases it, as a caller does that is refused further on.
pub(super) fn isolator(world: &World, range: PfnRange) {
    for _ in 0..2 {
        if world.mm.start_isolate_page_range(range, IsolateMode::Other).is_ok() {
            world.pages.isolate(range);
            sync::yield_now();
            unisolate(world, range);
        }
        sync::yield_now();
    }
}

/// The same by single pageblocks, the last one first.
pub(super) fn backward_isolator(world: &World, range: PfnRange) {
    let order = world.mm.geometry().pageblock_order;
    for _ in 0..2 {
        let mut isolated = Vec::new();
        for block in range.step(order).rev().map(|block| PfnRange::block(block, order)) {
            if world.mm.start_isolate_page_range(block, IsolateMode::Other).is_err() {
                break;
            }
            world.pages.isolate(block);
            isolated.push(block);
            sync::yield_now();
        }
        isolated.into_iter().for_each(|block| unisolate(world, block));
        sync::yield_now();
    }
}

/// Ends an isolation of the caller's.
fn unisolate(world: &World, range: PfnRange) {
    let blocks = world.mm.geometry().pageblock_order;
    if let Some(block) = range.step(blocks).find(|&block| !world.mm.is_isolated(block)) {
        let what = format!("another has ended the isolation of {block:?}");
        world.run.violate(Holds::OneIsolatorPerPageblock, what);
    }
    world.pages.unisolate(range);
    world.mm.undo_isolate_page_range(range, Some(MigrateType::Movable));
}

/// Adds a memory block that was absent.
pub(super) fn hot_adder(world: &World, block: usize) {
    world.mm.add_section(block, ZoneId(0));
    world.pages.forget(world.mm.geometry().section_range(block));
    if let Err(error) = world.mm.online_block(block) {
        world.run.violate(Holds::OffliningEnds, format!("block {block} is new and {error}"));
    }
}
