// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocations that have a zonelist of their own.

use super::*;

/// All zones of this list, and no others.
struct Own([Zoneref; 3]);

impl Constraint for Own {
    fn allows(&self, _node: u8) -> bool {
        true
    }

    fn in_nodemask(&self, _node: u8) -> bool {
        true
    }

    fn zonelist(&self, _node: u8, _movable: bool) -> Option<&[Zoneref]> {
        Some(&self.0)
    }
}

#[test]
fn own_zonelist_is_walked_up_to_its_end() {
    let zone = |node: u8| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: core::iter::once(usize::from(node)..usize::from(node) + 1).collect(),
    };
    let zones = vec![zone(0), zone(1), zone(2)];
    let mm = Mm::new(&Layout { zones, ..Layout::flat(Geometry::TINY, 1, 3) });
    let mut own = Own(Default::default());
    let request = AllocRequest::movable(Geometry::TINY.max_order);
    assert_eq!(mm.alloc_constrained(0, request, &mut own), Err(AllocError::Failed));
    own.0[0].set(Some(ZoneId(2)));
    own.0[1].set(Some(ZoneId(1)));
    let mut from = || {
        let page = mm.alloc_constrained(0, request, &mut own).ok()?;
        mm.zone_of(page)
    };
    let blocks = Geometry::TINY.section_pages() >> Geometry::TINY.max_order;
    for zone in [2, 1] {
        for _ in 0..blocks {
            assert_eq!(from(), Some(ZoneId(zone)));
        }
    }
    assert_eq!(from(), None);
}
