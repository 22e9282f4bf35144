// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A scheme in a guest, as threads that allocate and one that updates see it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use guest_driver::page_alloc::{
    AllocRequest, Geometry, Layout, Mm, NodeMask, Pfn, ZoneLayout, ZoneType, ZonelistUpdate,
};
use guest_driver::placement::{
    Ask, CpusetId, Outcome, Placement, Policy, Scheme, Setup, TaskId, TaskSetup, Vma,
};

use super::seen::{CPUS, Flip, Got, Subject};
use super::zonelists::{self, OfZonelists};

/// The nodes. Their masks have a word each, so that a reader may see half of an update.
pub(super) const NODES: [u8; 2] = [0, 64];
/// Of each node: 256 MiB.
const SECTIONS: usize = 2;
/// More tries than any allocation needs that is not in an endless loop.
const MOST_TRIES: u32 = 1_000;

/// A scheme that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Which {
    /// A way to update cpusets, under allocations of this kind.
    Cpuset(Scheme, Asks),
    /// A way to update zonelists.
    Zonelist(ZonelistUpdate),
}

/// The policy of the allocations.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::bench) enum Asks {
    /// None: the cpuset alone limits them.
    Default,
    /// A VMA's, which is bound to the nodes of the cpuset.
    Bind,
}

/// A guest with a scheme.
pub(super) struct World {
    pub(super) mm: Arc<Mm>,
    pub(super) subject: Box<dyn Subject>,
    /// What it is compared with.
    pub(super) anywhere: Anywhere,
}

impl Which {
    /// A new guest, in which a task for each CPU allocates: of `size` tasks in all, which share a cpuset, or
    /// of `size` nodes for zonelists.
    ///
    /// # Errors
    /// If the scheme refuses its tasks.
    pub(super) fn world(self, flip: Flip, size: usize) -> Result<World> {
        match self {
            Self::Cpuset(scheme, asks) => {
                let mm = Arc::new(guest());
                let subject = Box::new(Cpuset::new(&mm, (scheme, asks), flip, size.max(CPUS))?);
                let anywhere = Anywhere(Arc::clone(&mm), AllocRequest::movable(0));
                Ok(World { mm, subject, anywhere })
            }
            Self::Zonelist(update) => {
                let mm = Arc::new(zonelists::guest(update, size)?);
                let subject = Box::new(OfZonelists::new(&mm, flip));
                // Another guest, in which readers of zonelists do nothing for the sake of updates.
                let without = Arc::new(zonelists::guest(ZonelistUpdate::Overwrite, size)?);
                Ok(World { mm, subject, anywhere: Anywhere(without, zonelists::request()) })
            }
        }
    }

    /// What grows from one point to the next of its curve, and the sizes.
    pub(super) fn sizes(self) -> (&'static str, &'static [usize]) {
        match self {
            Self::Cpuset(..) => ("tasks", &[2, 10, 100, 1_000]),
            Self::Zonelist(_) => ("nodes", &[1, 4, 16, 64, 128]),
        }
    }

    /// The size of what is measured with one only.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Cpuset(..) => CPUS,
            Self::Zonelist(_) => 1,
        }
    }

    /// Whether real threads can show what an update does.
    pub(super) fn updates(self) -> bool {
        // They do not stand still while lists are overwritten.
        self != Self::Zonelist(ZonelistUpdate::StopMachine)
    }
}

/// Two nodes with a zone each.
fn guest() -> Mm {
    let zone = |(at, node): (usize, u8)| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: std::iter::once(at * SECTIONS..(at + 1) * SECTIONS).collect(),
    };
    let zones = NODES.into_iter().enumerate().map(zone).collect();
    Mm::new(&Layout { zones, ..Layout::flat(Geometry::LINUX, CPUS, NODES.len() * SECTIONS) })
}

/// Allocations without a constraint, which are never updated.
pub(super) struct Anywhere(Arc<Mm>, AllocRequest);

impl Subject for Anywhere {
    fn allocate(&self, cpu: usize) -> Got {
        Got { page: self.0.alloc(cpu, self.1).ok(), ..Got::default() }
    }

    fn free(&self, cpu: usize, page: Pfn) {
        self.0.free(cpu, page);
    }

    fn update(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

struct Cpuset {
    placement: Placement,
    sides: [NodeMask; 2],
}

impl Cpuset {
    fn new(mm: &Arc<Mm>, (scheme, asks): (Scheme, Asks), flip: Flip, tasks: usize) -> Result<Self> {
        let [first, second] = NODES.map(NodeMask::of);
        let sides = match flip {
            Flip::Shrink => [first.union(second), first],
            Flip::Move => [first, second],
        };
        let vma = match asks {
            Asks::Default => Policy::DEFAULT,
            Asks::Bind => Policy::bind(first.union(second)),
        };
        let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![vma] };
        let setup = Setup { cpusets: vec![sides[0]], tasks: vec![task; tasks], ..Setup::default() };
        let placement = Placement::new(Arc::clone(mm), scheme, &setup)?;
        Ok(Self { placement, sides })
    }
}

impl Subject for Cpuset {
    fn allocate(&self, cpu: usize) -> Got {
        let request = AllocRequest::movable(0);
        let (task, vma) = (TaskId(cpu), Some(Vma(0)));
        let ask = Ask { task, vma, cpu, request, most_tries: MOST_TRIES };
        let Outcome { page, restarts, abandoned, .. } = self.placement.ask(&ask);
        Got { page: page.ok(), restarts, abandoned }
    }

    fn free(&self, cpu: usize, page: Pfn) {
        self.placement.mm().free(cpu, page);
    }

    fn update(&self, turn: u64) -> Result<()> {
        let side = self.sides[usize::from(turn.is_multiple_of(2))];
        self.placement.set_mems(CpusetId(0), side).context("updating the cpuset")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_moves_where_pages_come_from() {
        for &scheme in Scheme::ALL {
            let world = Which::Cpuset(scheme, Asks::Default).world(Flip::Move, 1).unwrap();
            for turn in 0..4 {
                world.subject.update(turn).unwrap();
                let page = world.subject.allocate(0).page.unwrap();
                let zone = world.mm.zone_of(page).map(|zone| world.mm.zone(zone).node());
                let expected = NODES[usize::from(turn % 2 == 0)];
                assert_eq!(zone, Some(expected), "{scheme} after {turn}");
                world.mm.free(0, page);
            }
        }
    }
}
