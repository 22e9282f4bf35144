// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::page_alloc::{
    AllocRequest, Constraint, Geometry, KernelSemantics, Layout, Look, MigrateType, MovePages,
    ZoneLayout,
};
use alloc::vec;
use core::sync::atomic::AtomicBool;
use std::sync::Mutex;

struct Nothing;

impl MovePages for Nothing {
    fn move_pages(&self, _: &Mm, _: crate::page_alloc::Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

const NORMAL: ZoneId = ZoneId(0);
const MOVABLE: ZoneId = ZoneId(1);
const REMOTE: ZoneId = ZoneId(2);

/// A node with a normal zone and a movable one of one memory block, and another with a normal zone.
fn mm(update: ZonelistUpdate) -> Mm {
    let zone = |node, kind, section: usize| ZoneLayout {
        node,
        kind,
        sections: core::iter::once(section..section + 1).collect(),
    };
    let zones = vec![
        zone(0, ZoneType::Normal, 0),
        zone(0, ZoneType::Movable, 1),
        zone(1, ZoneType::Normal, 2),
    ];
    let semantics = KernelSemantics { zonelists: update, ..KernelSemantics::V6_19 };
    Mm::new(&Layout { zones, semantics, ..Layout::flat(Geometry::TINY, 2, 3) })
}

const UNMOVABLE: AllocRequest =
    AllocRequest { order: 0, migratetype: MigrateType::Unmovable, node: 0, atomic: false };

fn walked(mm: &Mm, request: AllocRequest) -> Vec<ZoneId> {
    let mut zones = Vec::new();
    mm.walk_zonelist(0, request, |zone| {
        zones.push(zone);
        true
    });
    zones
}

#[test]
fn lists_follow_memory_in_every_scheme() {
    for &update in ZonelistUpdate::ALL {
        let mm = mm(update);
        let movable = |node| AllocRequest { node, ..AllocRequest::movable(0) };
        for _ in 0..3 {
            assert_eq!(walked(&mm, movable(0)), [MOVABLE, NORMAL, REMOTE], "{update}");
            assert_eq!(walked(&mm, movable(1)), [REMOTE, MOVABLE, NORMAL], "{update}");
            assert_eq!(walked(&mm, UNMOVABLE), [NORMAL, REMOTE], "{update}");
            mm.offline_block(1, &Nothing, &|| false).unwrap();
            assert_eq!(walked(&mm, movable(0)), [NORMAL, REMOTE], "{update}");
            assert_eq!(walked(&mm, movable(9)), [NORMAL, REMOTE], "{update}");
            mm.online_block(1).unwrap();
        }
    }
}

#[test]
fn lists_have_room_for_their_scheme() {
    let entry = size_of::<Zoneref>();
    let bytes = |update| mm(update).zonelist_bytes() / entry;
    // Three lists of three zones and an end.
    assert_eq!(bytes(ZonelistUpdate::SequenceCount), 3 * 4);
    assert_eq!(bytes(ZonelistUpdate::AppendAndTerminate), 3 * 7);
    assert_eq!(bytes(ZonelistUpdate::Rcu), 2 * 3 * 4);
}

/// Takes the movable zone offline at one look, and back at the next.
struct Offlines<'a> {
    mm: &'a Mm,
    at: Look,
    done: bool,
}

impl Constraint for Offlines<'_> {
    fn allows(&self, _: u8) -> bool {
        true
    }

    fn in_nodemask(&self, _: u8) -> bool {
        true
    }

    fn must_restart(&mut self, at: Look) -> bool {
        if at == self.at && !core::mem::replace(&mut self.done, true) {
            self.mm.offline_block(1, &Nothing, &|| false).expect("nothing of it is in use");
        }
        false
    }
}

/// The report of 2022: the preferred zone is cached, and the entry becomes the end of the list.
#[test]
fn cached_zoneref_is_lost_unless_readers_look() {
    let outcome = |update| {
        let mm = mm(update);
        // Everything of both normal zones down to their low watermarks, so that the slow path serves it.
        let low = |zone| mm.zone(zone).watermarks().low;
        while [NORMAL, REMOTE].iter().any(|&z| mm.zone(z).watermark_ok(0, low(z), false)) {
            mm.alloc(0, UNMOVABLE).unwrap();
        }
        let mut offlines = Offlines { mm: &mm, at: Look::TopOfRetry, done: false };
        mm.alloc_constrained(0, UNMOVABLE, &mut offlines).ok().and_then(|pfn| mm.zone_of(pfn))
    };
    for update in
        [ZonelistUpdate::StopMachine, ZonelistUpdate::Overwrite, ZonelistUpdate::AppendAndTerminate]
    {
        // The first normal zone is passed over; the second one stands at the index of the first.
        assert_eq!(outcome(update), Some(REMOTE), "{update}");
    }
    for update in [ZonelistUpdate::SequenceCount, ZonelistUpdate::Rcu] {
        assert_eq!(outcome(update), Some(NORMAL), "{update}");
    }
}

/// Records what an update does.
#[derive(Default)]
struct Recorder {
    odd: AtomicBool,
    seen: Mutex<Vec<(&'static str, bool)>>,
}

impl Recorder {
    fn record(&self, what: &'static str) {
        let mut seen = self.seen.lock().expect("no thread has panicked");
        let now = (what, self.odd.load(Ordering::Relaxed));
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
}

impl Surroundings for Recorder {
    fn updates(&self, odd: bool) {
        self.odd.store(odd, Ordering::Relaxed);
    }

    fn interruptible(&self) {
        self.record("interrupt");
    }

    fn prints(&self) {
        self.record("print");
    }
}

/// Walks the lists at each step of an update, and collects what walks find.
struct Walker {
    mm: OnceLock<std::sync::Weak<Mm>>,
    found: Mutex<Vec<Vec<ZoneId>>>,
}

impl Surroundings for Walker {
    fn interruptible(&self) {
        let Some(mm) = self.mm.get().and_then(std::sync::Weak::upgrade) else { return };
        let found = walked(&mm, UNMOVABLE);
        self.found.lock().expect("no thread has panicked").push(found);
    }
}

#[test]
fn copy_behind_the_list_keeps_zones_visible() {
    let hides_a_zone = |update| {
        let mm = Arc::new(mm(update));
        let walker = Arc::new(Walker { mm: OnceLock::new(), found: Mutex::default() });
        let _ = walker.mm.set(Arc::downgrade(&mm));
        assert!(mm.set_surroundings(walker.clone()).is_ok());
        mm.offline_block(1, &Nothing, &|| false).unwrap();
        mm.online_block(1).unwrap();
        let found = walker.found.lock().unwrap();
        assert!(!found.is_empty());
        found.iter().any(|walk| !walk.contains(&NORMAL) || !walk.contains(&REMOTE))
    };
    assert!(hides_a_zone(ZonelistUpdate::Overwrite));
    assert!(!hides_a_zone(ZonelistUpdate::AppendAndTerminate));
}

#[test]
fn only_updates_of_2023_meet_interrupts_or_console() {
    let seen = |update| {
        let (mm, recorder) = (mm(update), Arc::new(Recorder::default()));
        assert!(mm.set_surroundings(recorder.clone()).is_ok());
        mm.rebuild_zonelists();
        recorder.seen.lock().unwrap().clone()
    };
    assert_eq!(seen(ZonelistUpdate::SequenceCountInterruptible), [("interrupt", true)]);
    assert_eq!(seen(ZonelistUpdate::SequenceCountPrinting), [("print", true)]);
    assert_eq!(seen(ZonelistUpdate::SequenceCount), [("print", false)]);
    assert_eq!(seen(ZonelistUpdate::Overwrite), [("interrupt", false)]);
    assert_eq!(seen(ZonelistUpdate::StopMachine), []);
}
