// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The zones in which an allocation looks, in order of preference (`struct zonelist`).
//!
//! A zone without memory is in no list. The lists are built again when a zone gets its first memory block or
//! loses its last (`build_all_zonelists`), under allocations that walk them: an allocation remembers an
//! index, and what is there may have become another zone, or the end.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicUsize;

use super::Mm;
use super::zone::{Zone, ZoneId, ZoneType};
use crate::sync::{self, AtomicU64, Ordering, Point, fence};

/// How the lists are changed under allocations that walk them.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum ZonelistUpdate {
    /// A zoneref after the other, without a word to readers. From 4.14 to 6.0.
    Overwrite,
    /// The same, with a sequence count that readers look at in their slow path
    /// (`zonelist_update_seq`). Since 6.1.
    SequenceCount,
}

/// The end of a list.
const NULL: usize = usize::MAX;

/// The zonerefs of one node. They end with [`NULL`].
#[derive(Debug)]
struct Zonelist(Box<[AtomicUsize]>);

/// The lists of all nodes.
#[derive(Debug)]
pub(crate) struct Zonelists {
    update: ZonelistUpdate,
    /// By node, the last for one without memory.
    lists: Box<[Zonelist]>,
    /// Odd while the lists are being changed.
    sequence: AtomicU64,
    /// Before each look at a zoneref, and each change.
    point: Point,
}

impl Zonelists {
    /// Empty lists for these zones. Each look at a zoneref is a scheduling point if `watched`.
    pub(crate) fn new(update: ZonelistUpdate, zones: &[Zone], watched: bool) -> Self {
        let nodes = zones.iter().map(|zone| usize::from(zone.node) + 1).max().unwrap_or(0);
        let list = |_| Zonelist((0..=zones.len()).map(|_| AtomicUsize::new(NULL)).collect());
        let (sequence, point) = (AtomicU64::new(0), Point::new(watched));
        Self { update, lists: (0..=nodes).map(list).collect(), sequence, point }
    }

    /// Builds all lists again, with the hotplug lock held.
    pub(crate) fn rebuild(&self, zones: &[Zone]) {
        let counts = self.update == ZonelistUpdate::SequenceCount;
        let count = self.sequence.load(Ordering::Relaxed);
        if counts {
            self.sequence.store(count + 1, Ordering::Relaxed);
            fence(Ordering::Release);
        }
        for (node, list) in self.lists.iter().enumerate() {
            let built = in_order(zones, node);
            let built = built.into_iter().map(|zone| zone.0).chain(core::iter::repeat(NULL));
            for (zoneref, zone) in list.0.iter().zip(built) {
                self.point.pass();
                zoneref.store(zone, Ordering::Release);
            }
        }
        if counts {
            self.sequence.store(count + 2, Ordering::Release);
        }
    }

    /// What the slow path begins with (`zonelist_iter_begin`).
    pub(crate) fn read_begin(&self) -> u64 {
        if self.update != ZonelistUpdate::SequenceCount {
            return 0;
        }
        loop {
            let count = self.sequence.load(Ordering::Acquire);
            if count.is_multiple_of(2) {
                return count;
            }
            sync::yield_now();
        }
    }

    /// Whether the lists have changed since (`check_retry_zonelist`).
    pub(crate) fn changed(&self, begun: u64) -> bool {
        self.update == ZonelistUpdate::SequenceCount && {
            fence(Ordering::Acquire);
            self.sequence.load(Ordering::Relaxed) != begun
        }
    }

    /// The zone at `index` of the list of `node`; none at its end.
    #[inline]
    pub(crate) fn zone(&self, node: u8, index: usize) -> Option<ZoneId> {
        let list = &self.lists[usize::from(node).min(self.lists.len() - 1)];
        self.point.pass();
        let zone = list.0.get(index)?.load(Ordering::Acquire);
        (zone != NULL).then_some(ZoneId(zone))
    }
}

/// The zones with memory in the order of preference of `node`: its own first, then by number. Movable
/// pages leave the other zones of a node to those that need them.
fn in_order(zones: &[Zone], node: usize) -> Vec<ZoneId> {
    let mut list: Vec<ZoneId> = (0..zones.len()).map(ZoneId).collect();
    list.retain(|zone| zones[zone.0].managed_pages() > 0);
    list.sort_by_key(|zone| {
        let zone = &zones[zone.0];
        let other = usize::from(zone.node);
        (other != node, other, zone.kind == ZoneType::Normal)
    });
    list
}

impl Mm {
    /// The system's zonelist of a node as it is now, without the zones that only movable pages may use if
    /// they are not `movable`.
    pub fn zonelist(&self, node: u8, movable: bool) -> Vec<ZoneId> {
        let all = (0..).map_while(|index| self.zonelists.zone(node, index));
        all.filter(|&zone| movable || self.zone(zone).kind == ZoneType::Normal).collect()
    }

    /// Builds the zonelists again (`build_all_zonelists`), as happens when a zone gets its first memory
    /// block or loses its last. One at a time may do so.
    pub fn rebuild_zonelists(&self) {
        self.zonelists.rebuild(&self.zones);
    }
}
