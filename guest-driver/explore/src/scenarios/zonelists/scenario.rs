// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: the world and actors of a scenario.

use std::sync::Arc;

use super::around::Around;
use super::catalogue;
use super::invariant::Holds;
use super::setting::{Readers, Setting};
use super::world::{MOVABLE_SECTION, Progress, World};
use crate::{Actor, Configuration, Model, Notes, Run};
use guest_driver::page_alloc::{
    AllocRequest, Geometry, KernelSemantics, Layout, MigrateType, Mm, Surroundings, ZoneId,
    ZoneLayout, ZoneType,
};

/// Sections of the zone that can always serve. With fewer pages its watermarks would lie closer to each
/// other than CPUs may have pages.
const SECTIONS: usize = 8;

/// Zonelists that change under allocations.
#[derive(Debug)]
pub struct Updates;

impl Model for Updates {
    const NAME: &'static str = "zonelists";
    const ABOUT: &'static str = "zonelists that are built again under allocations";
    const NOTES: Notes = catalogue::NOTES;

    type Invariant = Holds;
    type Setting = Setting;
    type World = World;

    fn configurations() -> Vec<Configuration<Setting, Holds>> {
        catalogue::configurations()
    }

    fn world(setting: &Setting, run: Arc<Run<Holds>>) -> Result<World, String> {
        let scenario = &setting.scenario;
        let around = Arc::new(Around::new(scenario));
        let mm = Arc::new(Mm::new(&layout(setting, around.writing_cpu() + 1)));
        if scenario.tight {
            fill_to_low(&mm, scenario.readers)?;
        }
        if scenario.reclaims && mm.set_reclaim(Arc::new(Progress)).is_err() {
            return Err("reclaim is installed once".to_owned());
        }
        around.set_mm(&mm);
        let installed: Arc<dyn Surroundings> = around.clone();
        if mm.set_surroundings(installed).is_err() {
            return Err("surroundings are installed once".to_owned());
        }
        Ok(World { mm, around, setting: setting.clone(), run, updates: Default::default() })
    }

    fn actors(setting: &Setting, _seed: u64) -> Vec<Actor<World>> {
        let scenario = setting.scenario;
        let mut all: Vec<Actor<World>> = vec![Box::new(World::update)];
        for cpu in 0..scenario.count {
            all.push(Box::new(move |world| world.read(cpu)));
        }
        if scenario.interrupts > 0 {
            all.push(Box::new(move |world| world.around.interrupt(scenario.interrupts)));
        }
        if scenario.lines > 0 {
            all.push(Box::new(move |world| world.around.print(scenario.lines)));
        }
        all
    }

    fn at_rest(_: &Setting, world: &World) {
        world.at_rest();
    }
}

/// A movable zone of one section, a normal one of the same node, and for bound readers one of another node.
fn layout(setting: &Setting, cpus: usize) -> Layout {
    let zone = |node, kind, sections: core::ops::Range<usize>| ZoneLayout {
        node,
        kind,
        sections: std::iter::once(sections).collect(),
    };
    let (first, most) = (MOVABLE_SECTION + 1, MOVABLE_SECTION + 1 + SECTIONS);
    let mut zones = vec![
        zone(0, ZoneType::Movable, MOVABLE_SECTION..first),
        zone(0, ZoneType::Normal, first..most),
    ];
    let mut sections = most;
    if setting.scenario.readers != Readers::Kernel {
        zones.push(zone(1, ZoneType::Normal, most..most + SECTIONS));
        sections += SECTIONS;
    }
    Layout {
        geometry: Geometry::TINY,
        semantics: KernelSemantics {
            zonelists: setting.update,
            zonelist_flaw: setting.flaw,
            ..KernelSemantics::V6_19
        },
        cpus,
        zones,
        shared: Vec::new(),
        sections,
        watch_zonelists: true,
    }
}

/// Leaves no zone that serves the readers a page above its low watermark.
fn fill_to_low(mm: &Mm, readers: Readers) -> Result<(), String> {
    let request = AllocRequest {
        node: readers.node(),
        migratetype: MigrateType::Unmovable,
        ..AllocRequest::movable(0)
    };
    for id in (0..mm.zone_count()).map(ZoneId) {
        let zone = mm.zone(id);
        let is_for_them = zone.kind() == ZoneType::Normal && zone.node() == readers.node();
        while is_for_them && zone.watermark_ok(0, zone.watermarks().low, false) {
            mm.alloc(0, request).map_err(|error| error.to_string())?;
            mm.drain_all(id);
        }
    }
    Ok(())
}
