// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The zonelists of one cpuset.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::page_alloc::{Mm, NodeMask, ZoneId, Zoneref};

/// How many lists a set has, and how long they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    nodes: usize,
    /// Entries of a list, the one that ends it included.
    entries: usize,
    /// Lists that have all zones, those of allowed nodes first, beside those that have no others.
    pub(super) softwall: bool,
}

impl Shape {
    /// Lists for the memory of `mm`.
    pub(super) fn of(mm: &Mm, softwall: bool) -> Self {
        let zones = (0..mm.zone_count()).map(|zone| mm.zone(ZoneId(zone)));
        let nodes = zones.map(|zone| usize::from(zone.node()) + 1).max().unwrap_or(1);
        Self { nodes, entries: mm.zone_count() + 1, softwall }
    }

    /// Nodes, each with lists of its own, which an update allocates.
    pub(super) fn nodes(self) -> usize {
        self.nodes
    }

    /// Lists of a node: for pages that are movable and for others, without softwall and with.
    fn lists_of_node(self) -> usize {
        2 << usize::from(self.softwall)
    }

    fn len(self) -> usize {
        self.nodes * self.lists_of_node() * self.entries
    }

    /// Bytes of a set's entries.
    pub(super) fn bytes(self) -> usize {
        self.len() * size_of::<Zoneref>()
    }
}

/// Which zones a list has beside those of allowed nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wall {
    /// None.
    Hard,
    /// All others, behind them.
    Soft,
}

/// A zonelist for each node of the system, with the zones of a cpuset's nodes.
#[derive(Debug)]
pub struct ZonelistSet {
    shape: Shape,
    words: [AtomicU64; 2],
    entries: Box<[Zoneref]>,
}

impl ZonelistSet {
    /// Memory for one.
    pub(super) fn empty(shape: Shape) -> Self {
        Self {
            shape,
            words: NodeMask::EMPTY.words().map(AtomicU64::new),
            entries: core::iter::repeat_with(Zoneref::default).take(shape.len()).collect(),
        }
    }

    /// Builds the lists of a cpuset with the nodes `mems`, from the system's as they are now.
    pub(super) fn fill(&self, mm: &Mm, mems: NodeMask) {
        for (word, value) in self.words.iter().zip(mems.words()) {
            word.store(value, Ordering::Relaxed);
        }
        let walls: &[Wall] =
            if self.shape.softwall { &[Wall::Hard, Wall::Soft] } else { &[Wall::Hard] };
        for node in (0..NodeMask::NODES).take(self.shape.nodes) {
            for movable in [false, true] {
                let system = mm.zonelist(node, movable);
                let allowed = |zone: &ZoneId| mems.contains(mm.zone(*zone).node());
                for &wall in walls {
                    let others = system.iter().filter(|zone| wall == Wall::Soft && !allowed(zone));
                    let zones = system.iter().filter(|zone| allowed(zone)).chain(others);
                    let zones = zones.copied().map(Some).chain(core::iter::repeat(None));
                    let list = self.list(node, movable, wall);
                    list.iter().zip(zones).for_each(|(entry, zone)| entry.set(zone));
                }
            }
        }
    }

    /// The nodes of the cpuset.
    pub(super) fn nodes(&self) -> NodeMask {
        NodeMask::from_words(self.words.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// The zones in which an allocation of `node` looks.
    pub(super) fn list(&self, node: u8, movable: bool, wall: Wall) -> &[Zoneref] {
        let Shape { nodes, entries, .. } = self.shape;
        let node = usize::from(node).min(nodes - 1);
        let list = node * self.shape.lists_of_node()
            + usize::from(movable)
            + 2 * usize::from(wall == Wall::Soft);
        &self.entries[list * entries..][..entries]
    }
}
