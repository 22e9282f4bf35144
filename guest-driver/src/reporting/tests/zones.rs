// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A zone near its low watermark beside one that has plenty.

use super::*;
use crate::page_alloc::{MigrateType, ZoneLayout, ZoneType};

const LOW: ZoneId = ZoneId(0);
const OTHER: ZoneId = ZoneId(1);

/// A normal zone of one section, all in use but for less than the reporter may hold of it, and a
/// movable zone of two sections. Returns what the normal zone has in use, in base pages.
fn guest_with_low_zone(config: Config) -> (Arc<Mm>, Reporter, Vec<Pfn>) {
    let mut layout = Layout::flat(G, 1, 3);
    let zone = |kind, sections| ZoneLayout { node: 0, kind, sections: vec![sections] };
    layout.zones = vec![zone(ZoneType::Normal, 0..1), zone(ZoneType::Movable, 1..3)];
    let mm = Arc::new(Mm::new(&layout));
    let reporter = Reporter::new(Arc::clone(&mm), config).unwrap();
    let take = |order| {
        let request =
            AllocRequest { order, migratetype: MigrateType::Unmovable, node: 0, atomic: false };
        mm.alloc(0, request).ok()
    };
    let block = take(9).unwrap();
    let mut in_use = Vec::new();
    while let Some(pfn) = take(0) {
        in_use.push(pfn);
    }
    mm.free(0, block);
    mm.drain_all(LOW);
    (mm, reporter, in_use)
}

fn marked_configs() -> impl Iterator<Item = Config> {
    every_config().filter(|config| config.tracker != TrackerKind::ReportedFlag)
}

#[test]
fn low_zone_does_not_end_the_pass_for_others() {
    for config in every_config() {
        let (mm, mut reporter, _) = guest_with_low_zone(config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        assert_eq!(host.pages(), mm.zone(OTHER).managed_pages(), "{config:?}");
    }
}

#[test]
fn low_zone_waits_until_it_has_recovered() {
    for config in marked_configs() {
        let (mm, mut reporter, mut in_use) = guest_with_low_zone(config);
        let mut host = Host::default();
        assert!(settle(&mut reporter, &mut host) < 200, "{config:?} does not come to rest");
        assert_eq!(reporter.schedule().due(), None, "{config:?}");
        host.reports.clear();
        // Base pages, none of which is large enough to be heard of by itself.
        while !reporter.has_work() {
            let zone = mm.zone(LOW);
            let spare = zone.free_pages().saturating_sub(zone.watermarks().low);
            assert!(spare < 2 * 512, "{config:?}: {spare} pages to spare, and no pass is due");
            mm.free(0, in_use.pop().unwrap());
            mm.drain_all(LOW);
        }
        settle(&mut reporter, &mut host);
        assert!(host.pages() >= 512, "{config:?}: {}", host.pages());
        mm.validate().unwrap();
    }
}

#[test]
fn suspended_reporter_does_not_hear_of_recovery() {
    for config in marked_configs() {
        let (mm, mut reporter, mut in_use) = guest_with_low_zone(config);
        settle(&mut reporter, &mut Host::default());
        reporter.suspend();
        // As the thread of a small VMM does, which finishes its work then.
        reporter.pass(&mut Host::default());
        in_use.drain(..).for_each(|pfn| mm.free(0, pfn));
        mm.drain_all(LOW);
        assert!(!reporter.has_work(), "{config:?}");
    }
}

/// A guest with one movable zone, of which `min` pages are free; what is in use.
fn exhausted(config: Config, min: u64) -> (Arc<Mm>, Reporter, Vec<Pfn>) {
    let geometry = Geometry { min_watermark: (min, min), ..G };
    let mm = Arc::new(Mm::new(&Layout::flat(geometry, 1, 1)));
    let reporter = Reporter::new(Arc::clone(&mm), config).unwrap();
    let mut in_use = Vec::new();
    while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(0)) {
        in_use.push(pfn);
    }
    mm.drain_all(LOW);
    (mm, reporter, in_use)
}

/// Of a zone with blocks of both orders, none of which it can spare.
#[test]
fn low_zone_waits_for_its_smallest_block() {
    for config in marked_configs() {
        let (mm, mut reporter, in_use) = exhausted(config, 2000);
        settle(&mut reporter, &mut Host::default());
        assert!(!reporter.has_work(), "{config:?}");
        // Every other page, so that none of them merge.
        let mut apart = in_use.iter().filter(|pfn| pfn.0 % 2 == 1);
        while !reporter.has_work() {
            mm.free(0, *apart.next().unwrap());
            mm.drain_all(LOW);
        }
        let zone = mm.zone(LOW);
        assert_eq!(zone.free_pages(), zone.watermarks().low + 512 + 1, "{config:?}");
    }
}

/// Pages that are freed while their pageblock is isolated are free when the isolation ends.
#[test]
fn zone_that_recovers_by_an_undo_is_heard() {
    for config in marked_configs() {
        let (mm, mut reporter, in_use) = exhausted(config, 2000);
        settle(&mut reporter, &mut Host::default());
        let used = |block: &Pfn| in_use.iter().filter(|pfn| pfn.align_down(9) == *block).count();
        let blocks = G.section_range(0).step(9).filter(|block| used(block) == 512);
        // 256 pages of each, none of which merge. The zone lacks 1013.
        for (done, block) in blocks.take(4).map(|head| PfnRange::block(head, 9)).enumerate() {
            mm.start_isolate_page_range(block, IsolateMode::Other).unwrap();
            block.step(1).for_each(|pfn| mm.free(0, pfn));
            assert!(!reporter.has_work(), "{config:?}");
            mm.undo_isolate_page_range(block, None);
            assert_eq!(reporter.has_work(), done == 3, "{config:?}");
        }
    }
}
