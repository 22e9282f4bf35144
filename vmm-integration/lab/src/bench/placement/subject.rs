// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A scheme in a guest of two nodes, as a program that allocates and one that updates see it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use guest_driver::page_alloc::{
    AllocRequest, Geometry, Layout, Mm, NodeMask, Pfn, ZoneLayout, ZoneType,
};
use guest_driver::placement::{
    Ask, CpusetId, Outcome, Placement, Policy, Scheme, Setup, TaskId, TaskSetup, Vma,
};

/// The nodes. Their masks have a word each, so that a reader may see half of an update.
pub(super) const NODES: [u8; 2] = [0, 64];
/// CPUs that allocate.
pub(super) const CPUS: usize = 2;
/// Of each node: 256 MiB.
const SECTIONS: usize = 2;
/// More tries than any allocation needs that is not in an endless loop.
const MOST_TRIES: u32 = 1_000;

/// A scheme that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Which {
    /// A way to update cpusets, under allocations of this kind.
    Cpuset(Scheme, Asks),
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

/// How the two states differ between which an update goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flip {
    /// The first node is always allowed: no allocation that takes from it sees anything.
    Shrink,
    /// Either node, never both.
    Move,
}

/// What became of one allocation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Got {
    pub(super) page: Option<Pfn>,
    /// How often the slow path began again.
    pub(super) restarts: u32,
    /// The allocation was in an endless loop.
    pub(super) abandoned: bool,
}

/// What is measured.
pub(super) trait Subject: Send + Sync {
    /// Allocates a page on this CPU.
    fn allocate(&self, cpu: usize) -> Got;

    /// Makes an update, between two states in turn.
    ///
    /// # Errors
    /// If it cannot be made.
    fn update(&self, turn: u64) -> Result<()>;
}

/// A guest with a scheme.
pub(super) struct World {
    pub(super) mm: Arc<Mm>,
    pub(super) subject: Box<dyn Subject>,
}

impl Which {
    /// A new guest, in which a task for each CPU allocates, and `idle` more share their cpuset.
    ///
    /// # Errors
    /// If the scheme refuses its tasks.
    pub(super) fn world(self, flip: Flip, idle: usize) -> Result<World> {
        match self {
            Self::Cpuset(scheme, asks) => {
                let mm = Arc::new(guest());
                let subject = Box::new(Cpuset::new(&mm, (scheme, asks), flip, idle)?);
                Ok(World { mm, subject })
            }
        }
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
pub(super) struct Anywhere(pub(super) Arc<Mm>);

impl Subject for Anywhere {
    fn allocate(&self, cpu: usize) -> Got {
        Got { page: self.0.alloc(cpu, AllocRequest::movable(0)).ok(), ..Got::default() }
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
    fn new(mm: &Arc<Mm>, (scheme, asks): (Scheme, Asks), flip: Flip, idle: usize) -> Result<Self> {
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
        let setup =
            Setup { cpusets: vec![sides[0]], tasks: vec![task; CPUS + idle], ..Setup::default() };
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
