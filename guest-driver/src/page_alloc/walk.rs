// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Walking a zonelist (`get_page_from_freelist`).

use super::Mm;
use super::allocate::AllocRequest;
use super::constraint::{Anywhere, Constraint};
use super::frame::FrameState;
use super::geometry::Pfn;
use super::zone::{Zone, ZoneId, ZoneType};
use super::zonelist::Zonelist;

impl Mm {
    /// The list that the allocation walks next.
    #[inline]
    pub(super) fn list_for<'a>(
        &'a self,
        cpu: usize,
        request: AllocRequest,
        constraint: &'a impl Constraint,
    ) -> Zonelist<'a> {
        match constraint.zonelist(request.node, request.is_movable()) {
            Some(zonerefs) => Zonelist::own(zonerefs),
            None => self.zonelists.of(cpu, request.node),
        }
    }

    /// The zone of an entry of a zonelist.
    #[inline]
    fn zone_in_list(&self, id: ZoneId) -> &Zone {
        match self.zones.get(id.0) {
            Some(zone) => zone,
            None => freed_zonelist(),
        }
    }

    /// The index of the first zone from `index` on that may serve the request and is in the nodemask
    /// (`next_zones_zonelist`).
    #[inline]
    pub(super) fn next_zoneref(
        &self,
        list: &Zonelist<'_>,
        request: AllocRequest,
        mut index: usize,
        constraint: &impl Constraint,
    ) -> Option<usize> {
        let movable = request.is_movable();
        loop {
            let zone = self.zone_in_list(list.zone(index)?);
            if (movable || zone.kind == ZoneType::Normal) && constraint.in_nodemask(zone.node) {
                return Some(index);
            }
            index += 1;
        }
    }

    /// Visits the zones from that at `index` on, which was found earlier, until `visit` returns something
    /// (`for_next_zone_zonelist_nodemask`). As in Linux each entry is read once more after it was found to
    /// be for such a request. Whether it still is, is not looked at.
    #[inline]
    pub(super) fn walk_from<R>(
        &self,
        list: &Zonelist<'_>,
        request: AllocRequest,
        mut index: usize,
        constraint: &impl Constraint,
        mut visit: impl FnMut(ZoneId, &Zone) -> Option<R>,
    ) -> Option<R> {
        loop {
            let id = list.zone(index)?;
            let found = visit(id, self.zone_in_list(id));
            if found.is_some() {
                return found;
            }
            index = self.next_zoneref(list, request, index + 1, constraint)?;
        }
    }

    /// Walks the list from `index` on until a zone that the constraint allows has a block
    /// (`get_page_from_freelist`).
    #[inline]
    pub(super) fn walk(
        &self,
        list: &Zonelist<'_>,
        request: AllocRequest,
        index: usize,
        constraint: &impl Constraint,
        take: impl Fn(&Zone) -> Option<Pfn>,
    ) -> Option<Pfn> {
        let pfn = self.walk_from(list, request, index, constraint, |_, zone| {
            if constraint.allows(zone.node) { take(zone) } else { None }
        })?;
        let (order, movable) = (request.order, request.is_movable());
        self.set_state(pfn, FrameState::Allocated { order, movable });
        Some(pfn)
    }

    /// Walks a node's list as an allocation does, and takes nothing: calls `visit` with each zone that may
    /// serve such pages, until it returns false.
    pub fn walk_zonelist(
        &self,
        cpu: usize,
        request: AllocRequest,
        mut visit: impl FnMut(ZoneId) -> bool,
    ) {
        let list = self.list_for(cpu, request, &Anywhere);
        let Some(preferred) = self.next_zoneref(&list, request, 0, &Anywhere) else {
            return;
        };
        self.walk_from(&list, request, preferred, &Anywhere, |id, _| (!visit(id)).then_some(()));
    }
}

#[cold]
fn freed_zonelist() -> ! {
    panic!("use after free: a zonelist is read that the next update may overwrite")
}
