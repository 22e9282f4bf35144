// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The zones in which an allocation looks, in order of preference (`struct zonelist`).
//!
//! A zone without memory is in no list. The lists are built again when a zone gets its first memory block or
//! loses its last (`build_all_zonelists`), under allocations that walk them. An allocation remembers an
//! index: meanwhile another zone may be there, or the end.
//!
//! | file | |
//! |---|---|
//! | [`scheme`] | the list of ways to update, and of their mistakes |
//! | `update` | the updates |
//! | [`surroundings`] | what meets with an update: interrupts, the console, readers that wait |

pub mod scheme;
pub mod surroundings;
mod update;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize};

use super::zone::{Zone, ZoneId, ZoneType};
use super::zoneref::Zoneref;
use super::{Layout, Mm};
use crate::swapped::{Epochs, Section};
use crate::sync::{self, OnceLock, Ordering, Point, fence};
use scheme::{ZonelistFlaw, ZonelistUpdate};
use surroundings::Surroundings;

/// The lists of all nodes, the last for one without memory.
type Lists = Box<[Box<[Zoneref]>]>;

/// The lists, and what readers and writer have in common.
pub(crate) struct Zonelists {
    update: ZonelistUpdate,
    flaw: Option<ZonelistFlaw>,
    /// The second one is for the next lists, where a pointer is swapped.
    copies: [Lists; 2],
    /// Which of them readers walk.
    current: AtomicUsize,
    /// Readers, where a pointer is swapped: read sections of RCU, as counts.
    readers: Option<Epochs<usize>>,
    /// `zonelist_update_seq`: odd while the lists are being changed.
    sequence: AtomicU64,
    /// Before each look at a zoneref or the sequence count, and each change.
    point: Point,
    surroundings: OnceLock<Arc<dyn Surroundings>>,
}

impl Zonelists {
    /// Empty lists for these zones.
    pub(crate) fn new(layout: &Layout, zones: &[Zone]) -> Self {
        let &Layout { semantics, cpus, watch_zonelists, .. } = layout;
        let (update, flaw) = (semantics.zonelists, semantics.zonelist_flaw);
        let nodes = zones.iter().map(|zone| usize::from(zone.node) + 1).max().unwrap_or(0);
        // A list, its copy behind it, and the end.
        let room = match update {
            ZonelistUpdate::AppendAndTerminate => 2 * zones.len() + 1,
            _ => zones.len() + 1,
        };
        let list = |_| (0..room).map(|_| Zoneref::default()).collect();
        let lists = |copies: bool| -> Lists {
            if copies { (0..=nodes).map(list).collect() } else { Box::default() }
        };
        let swaps = update == ZonelistUpdate::Rcu;
        Self {
            update,
            flaw,
            copies: [lists(true), lists(swaps)],
            current: AtomicUsize::new(0),
            readers: swaps.then(|| Epochs::new(cpus, None)),
            sequence: AtomicU64::new(0),
            point: Point::new(watch_zonelists),
            surroundings: OnceLock::new(),
        }
    }

    /// The list of a node, for one walk.
    #[inline]
    pub(crate) fn of(&self, cpu: usize, node: u8) -> Zonelist<'_> {
        let mut reading = None;
        let mut copy = 0;
        if let Some(readers) = &self.readers {
            reading = Some(Reading { readers, section: Some(readers.enter(cpu)) });
            self.point.pass();
            copy = self.current.load(Ordering::Acquire);
        }
        let lists = &self.copies[copy];
        let zonerefs = &lists[usize::from(node).min(lists.len() - 1)];
        Zonelist { zonerefs, point: Some(&self.point), _reading: reading }
    }

    /// What the slow path begins with (`zonelist_iter_begin`).
    pub(crate) fn read_begin(&self, cpu: usize, atomic: bool) -> u64 {
        if !self.update.counts() {
            return 0;
        }
        let mut waits = false;
        loop {
            self.point.pass();
            let count = self.sequence.load(Ordering::Acquire);
            let even = count.is_multiple_of(2);
            if let Some(around) = self.surroundings.get() {
                match (even, waits) {
                    (false, false) => around.waits(cpu, atomic),
                    (true, true) => around.waited(cpu, atomic),
                    _ => {}
                }
            }
            if even {
                return count;
            }
            waits = true;
            sync::yield_now();
        }
    }

    /// Whether the lists have changed since (`check_retry_zonelist`).
    pub(crate) fn changed(&self, begun: u64) -> bool {
        self.update.counts() && {
            fence(Ordering::Acquire);
            self.point.pass();
            self.sequence.load(Ordering::Relaxed) != begun
        }
    }

    /// Whether an index means the same in the next walk, as far as a reader knows.
    pub(crate) fn keeps_indices(&self) -> bool {
        self.readers.is_none()
    }

    /// Bytes of all lists, those of which a copy is kept included.
    fn bytes(&self) -> usize {
        self.copies.iter().flatten().map(|list| size_of_val(&**list)).sum()
    }
}

/// A read section of RCU.
struct Reading<'a> {
    readers: &'a Epochs<usize>,
    section: Option<Section>,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(section) = self.section.take() {
            self.readers.leave(section);
        }
    }
}

/// A zonelist, while it is walked.
pub(crate) struct Zonelist<'a> {
    zonerefs: &'a [Zoneref],
    /// None of a list of the allocation's own.
    point: Option<&'a Point>,
    _reading: Option<Reading<'a>>,
}

impl<'a> Zonelist<'a> {
    /// A list of an allocation's own.
    #[inline]
    pub(crate) fn own(zonerefs: &'a [Zoneref]) -> Self {
        Self { zonerefs, point: None, _reading: None }
    }

    /// The zone at `index` as of now; none at the end.
    ///
    /// # Panics
    /// If a walk has gone beyond the end.
    #[inline]
    pub(crate) fn zone(&self, index: usize) -> Option<ZoneId> {
        if let Some(point) = self.point {
            point.pass();
        }
        self.zonerefs[index].zone()
    }
}

impl Mm {
    /// The system's zonelist of a node as it is now, without the zones that only movable pages may use if
    /// they are not `movable`.
    pub fn zonelist(&self, node: u8, movable: bool) -> Vec<ZoneId> {
        let list = self.zonelists.of(0, node);
        let all = (0..).map_while(|index| list.zone(index));
        all.filter(|&zone| movable || self.zone(zone).kind == ZoneType::Normal).collect()
    }

    /// Builds the zonelists again (`build_all_zonelists`), as happens when a zone gets its first memory
    /// block or loses its last. One at a time may do so.
    pub fn rebuild_zonelists(&self) {
        self.zonelists.rebuild(&self.zones);
    }

    /// Installs what meets with updates of the zonelists.
    ///
    /// # Errors
    /// Returns it if there is one already.
    pub fn set_surroundings(
        &self,
        surroundings: Arc<dyn Surroundings>,
    ) -> Result<(), Arc<dyn Surroundings>> {
        self.zonelists.surroundings.set(surroundings)
    }

    /// Bytes of all zonelists.
    pub fn zonelist_bytes(&self) -> usize {
        self.zonelists.bytes()
    }
}

/// The zones with memory in the order of preference of `node`: its own first, then those of higher nodes,
/// then of lower ones (`find_next_best_node`, where all are as far). Movable pages leave the other zones of
/// a node to those that need them.
fn in_order(zones: &[Zone], node: usize) -> Vec<ZoneId> {
    let mut list: Vec<ZoneId> = (0..zones.len()).map(ZoneId).collect();
    list.retain(|zone| zones[zone.0].managed_pages() > 0);
    list.sort_by_key(|zone| {
        let zone = &zones[zone.0];
        let other = usize::from(zone.node);
        (other < node, other, zone.kind == ZoneType::Normal)
    });
    list
}
