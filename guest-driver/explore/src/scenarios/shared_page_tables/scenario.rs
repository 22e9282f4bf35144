// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: the world and actors of a scenario.

use std::sync::Arc;

use super::catalogue;
use super::invariant::Holds;
use super::setting::{Other, Setting};
use crate::{Actor, Configuration, Model, Notes, Run};
use guest_driver::hugetlb::{Broken, Config, Hugetlb, Locks, Task};
use guest_driver::random::Random;

/// Entries of a page table.
const ENTRIES: usize = 2;

/// Processes that share page tables, and what takes them away.
#[derive(Debug)]
pub struct SharedPageTables;

/// What the actors of a run share.
#[derive(Debug)]
pub struct World {
    hugetlb: Hugetlb,
    run: Arc<Run<Holds>>,
}

impl World {
    fn note(&self, result: Result<(), Broken>) {
        if let Err(Broken { rule, what }) = result {
            self.run.violate(rule.into(), what);
        }
    }

    fn act(&self, name: usize, actor: Other, mut random: Random) -> Result<(), Broken> {
        let hugetlb = &self.hugetlb;
        let task = &hugetlb.task(format!("task {name} ({actor:?})"));
        let mut page = || random.index(hugetlb.pages());
        match actor {
            Other::Fault(space, count) => {
                for _ in 0..count {
                    hugetlb.fault(task, space, page())?;
                }
                Ok(())
            }
            Other::CowFault(space) => hugetlb.cow_fault(task, space, 0).map(drop),
            Other::Punch => {
                let first = page();
                hugetlb.punch(task, first..first + 1)
            }
            Other::Truncate => hugetlb.truncate(task, 1),
            Other::Exit(space) => self.exit(task, space),
            Other::Remap(space) => {
                hugetlb.munmap(task, space)?;
                hugetlb.mmap(task, space);
                hugetlb.fault(task, space, page()).map(drop)
            }
            Other::Fork(parent, child) => {
                hugetlb.fork(task, parent, child)?;
                hugetlb.fault(task, child, page())?;
                self.exit(task, child)
            }
            Other::MapPrivate(space) => hugetlb.map_private(task, space),
            Other::Unshare(space) => {
                hugetlb.unshare(task, space)?;
                hugetlb.fault(task, space, page()).map(drop)
            }
            Other::Split(space) => {
                hugetlb.split(task, space)?;
                hugetlb.fault(task, space, page()).map(drop)
            }
            Other::Speculate => hugetlb.speculate(),
            Other::GupFast(space) => {
                for index in 0..hugetlb.pages() {
                    hugetlb.gup_fast(task, space, index)?;
                }
                Ok(())
            }
            Other::Reuse => hugetlb.reuse(),
        }
    }

    fn exit(&self, task: &Task, space: usize) -> Result<(), Broken> {
        self.hugetlb.munmap(task, space)?;
        self.hugetlb.evict(task).map(drop)
    }
}

impl Model for SharedPageTables {
    const NAME: &'static str = "shared-page-tables";
    const ABOUT: &'static str =
        "processes that share page tables of hugetlbfs, and what unshares them";
    const NOTES: Notes = catalogue::NOTES;

    type Invariant = Holds;
    type Setting = Setting;
    type World = World;

    fn configurations() -> Vec<Configuration<Setting, Holds>> {
        catalogue::configurations()
    }

    fn world(setting: &Setting, run: Arc<Run<Holds>>) -> Result<World, String> {
        let scenario = &setting.scenario;
        let hugetlb = Hugetlb::new(Config {
            scheme: setting.scheme,
            flaw: setting.flaw,
            pieces: scenario.pieces,
            entries: ENTRIES,
            spaces: scenario.spaces,
            locks: Locks::Watched,
        });
        let task = hugetlb.task("setup");
        for &space in scenario.mapped {
            hugetlb.mmap(&task, space);
        }
        for &(space, index) in scenario.faulted {
            hugetlb.fault(&task, space, index).map_err(|broken| broken.to_string())?;
        }
        Ok(World { hugetlb, run })
    }

    fn actors(setting: &Setting, seed: u64) -> Vec<Actor<World>> {
        let mut random = Random(seed);
        let actor = |(name, &actor): (usize, &Other)| {
            let random = Random(random.number());
            let body = move |world: &World| world.note(world.act(name, actor, random));
            Box::new(body) as Actor<World>
        };
        setting.scenario.actors.iter().enumerate().map(actor).collect()
    }

    fn at_rest(_: &Setting, world: &World) {
        world.note(world.hugetlb.check_at_rest());
    }
}
