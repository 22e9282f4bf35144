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
        let request = AllocRequest { order, migratetype: MigrateType::Unmovable, node: 0 };
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
        in_use.drain(..).for_each(|pfn| mm.free(0, pfn));
        mm.drain_all(LOW);
        assert!(!reporter.has_work(), "{config:?}");
    }
}
