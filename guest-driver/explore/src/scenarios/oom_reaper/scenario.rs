// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: the world and actors of a scenario.

use std::sync::Arc;

use super::catalogue;
use super::invariant::Holds;
use super::setting::{Mirror, Setting};
use super::world::World;
use crate::{Actor, Configuration, Model, Notes, Run};

/// The OOM reaper beside secondary MMUs.
#[derive(Debug)]
pub struct Reaps;

impl Model for Reaps {
    const NAME: &'static str = "oom-reaper";
    const ABOUT: &'static str = "the OOM reaper beside devices that mirror memory";
    const NOTES: Notes = catalogue::NOTES;

    type Invariant = Holds;
    type Setting = Setting;
    type World = World;

    fn configurations() -> Vec<Configuration<Setting, Holds>> {
        catalogue::configurations()
    }

    fn world(setting: &Setting, run: Arc<Run<Holds>>) -> Result<World, String> {
        Ok(World::new(setting, run))
    }

    fn actors(setting: &Setting, _seed: u64) -> Vec<Actor<World>> {
        let scenario = setting.scenario;
        let mut all: Vec<Actor<World>> = vec![Box::new(World::reap)];
        for (number, &mirror) in scenario.mirrors.iter().enumerate() {
            all.push(Box::new(move |world: &World| world.mirror(number)));
            if matches!(mirror, Mirror::Flushes | Mirror::Waits) {
                all.push(Box::new(move |world: &World| world.work(number)));
            }
        }
        if scenario.exits {
            all.push(Box::new(World::exit));
        }
        if scenario.maps {
            all.push(Box::new(World::map));
        }
        all
    }

    fn at_rest(_: &Setting, world: &World) {
        world.at_rest();
    }
}
