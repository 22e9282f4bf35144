// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What must hold when all is quiet: the reporter is alone, and finishes its work.

use core::cell::Cell;

use super::actors;
use super::host::Host;
use super::invariant::Holds;
use super::pages::Pages;
use super::setting::{Other, Scenario, Setting};
use super::world::World;
use guest_driver::page_alloc::{FrameState, MigrateType, OfflineError, Pfn, ZoneId};
use guest_driver::reporting::{Holding, Reporter};

/// Passes in which a reporter must come to rest when all is quiet.
const REST: usize = 20;

/// How often offlining may find something that is not free.
const TRIES: usize = 5;

/// A world in which only the reporter acts.
pub(super) struct Rest<'a> {
    pub(super) setting: &'a Setting,
    pub(super) world: &'a World,
    pub(super) reporter: Reporter,
    pub(super) host: Host,
}

impl Rest<'_> {
    /// Checks everything, and whatever can be checked only now.
    pub(super) fn check(mut self) {
        self.validate("when all is quiet");
        check_reserve(self.world, &self.setting.scenario);
        self.report_all();
        if self.setting.scenario.has(|other| matches!(other, Other::Hog(_))) {
            // The low zone recovers by frees that are too small for the reporter to see.
            self.world.thin_out(self.setting.scenario.cpus);
            let mm = &self.world.mm;
            (0..mm.zone_count()).for_each(|zone| mm.drain_all(ZoneId(zone)));
            self.report_all();
        }
        if self.setting.scenario.offlines() {
            self.offline_freed();
            self.report_all();
            self.refuse_unmovable();
        }
    }

    /// Takes a memory block off- and online of which something was freed and not yet reported.
    fn offline_freed(&self) {
        let World { mm, run, .. } = self.world;
        let Some(freed) = actors::nudge(self.world) else { return };
        let block = actors::memory_block(self.world, freed);
        let tries = Cell::new(0);
        let give_up = || tries.replace(tries.get() + 1) == TRIES;
        match mm.offline_block(block, self.world, &give_up) {
            Ok(()) => {
                actors::gone_offline(self.world, block);
                if let Err(error) = mm.online_block(block) {
                    let what = format!("block {block} does not come online: {error}");
                    run.violate(Holds::OffliningEnds, what);
                }
            }
            Err(error) => {
                let what =
                    format!("block {block}, all of it movable, does not go offline: {error}");
                run.violate(Holds::OffliningEnds, what);
            }
        }
    }

    /// A memory block with an unmovable page is refused before anything in it is moved: an offliner that
    /// got past its isolation is interrupted at once.
    fn refuse_unmovable(&self) {
        let World { mm, run, .. } = self.world;
        let unmovable =
            |&pfn: &Pfn| matches!(mm.state(pfn), FrameState::Allocated { movable: false, .. });
        for block in (0..mm.section_count()).filter(|&block| mm.is_online(block)) {
            let range = mm.geometry().section_range(block);
            let Some(pfn) = range.step(0).find(unmovable) else { continue };
            let result = mm.offline_block(block, self.world, &|| true);
            if result != Err(OfflineError::Busy) {
                let what = format!("{pfn:?} is unmovable, and offlining ends with {result:?}");
                run.violate(Holds::OffliningEnds, what);
            }
        }
        self.validate("after offlining was refused");
    }

    /// Makes passes until none is due: all that can be reported is, then.
    fn report_all(&mut self) {
        let Self { setting, world, reporter, host } = self;
        if setting.nudge {
            actors::nudge(world);
        }
        let mut passes = 0;
        while reporter.schedule().is_due() && !world.run.is_over() {
            if passes == REST {
                let what = format!("there is work still after {REST} passes on a quiet guest");
                world.run.violate(Holds::QuietGuestRests, what);
            }
            // Whatever changes now, the reporter has changed.
            let before = Pages::migratetypes(&world.mm);
            let failed = reporter.pass(&mut host.of(world)).failed;
            world.pages.check_migratetypes(&world.mm, &before, setting.keeps_types);
            if failed && setting.nudge && !reporter.has_work() {
                actors::nudge(world);
            }
            passes += 1;
        }
        self.validate("after all is reported");
        let World { mm, memory, pages, .. } = self.world;
        pages.check_reported(mm, memory, self.reporter.config().granule_order);
    }

    /// Checks the allocator's counters, and that no isolation is left over.
    fn validate(&self, when: &str) {
        let Self { world, reporter, .. } = self;
        if let Err(error) = world.mm.validate() {
            world.run.violate(Holds::CountersMatchFrames, format!("{when}: {error}"));
        }
        let zones = (0..world.mm.zone_count()).map(|zone| world.mm.zone(ZoneId(zone)));
        let left: u64 = zones.map(|zone| zone.isolated_blocks()).sum();
        let withheld = match reporter.config().holding {
            Holding::Isolate => reporter.withheld_pages() >> world.mm.geometry().pageblock_order,
            Holding::Pull => 0,
        };
        if left != withheld {
            let what =
                format!("{when}: {left} pageblocks are isolated, {withheld} by the reporter");
            world.run.violate(Holds::OneIsolatorPerPageblock, what);
        }
    }
}

fn check_reserve(world: &World, scenario: &Scenario) {
    let reserve = scenario.reserve().start;
    if scenario.cma && world.mm.underlying_migratetype(reserve) != MigrateType::Cma {
        let what = format!("{reserve:?} is no longer of the reserve");
        world.run.violate(Holds::MigratetypeKept, what);
    }
}
