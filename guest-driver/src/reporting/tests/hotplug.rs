// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that is removed.

use super::*;

#[test]
fn removed_memory_is_forgotten_and_new_one_reported() {
    for config in every_config() {
        let (mm, mut reporter) = guest(4, config);
        let mut host = Host::default();
        mm.offline_block(2, &Nobody, &|| false).unwrap();
        mm.remove_section(2).unwrap();
        settle(&mut reporter, &mut host);
        assert_eq!(host.pages(), 3 * 32768, "{config:?}");
        assert!(!reporter.has_work(), "{config:?}");
        mm.add_section(2, ZoneId(0));
        mm.online_block(2).unwrap();
        host.reports.clear();
        settle(&mut reporter, &mut host);
        let section = G.section_range(2);
        let of_it = |range: &&PfnRange| section.contains(range.start);
        let pages: u32 =
            host.reports.iter().flatten().filter(of_it).map(|range| range.pages()).sum();
        assert_eq!(pages, 32768, "{config:?}");
        mm.validate().unwrap();
    }
}

#[test]
fn suspended_reporter_hears_of_no_new_memory() {
    for config in every_config() {
        let (mm, mut reporter) = guest(4, config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        mm.offline_block(2, &Nobody, &|| false).unwrap();
        settle(&mut reporter, &mut host);
        reporter.suspend();
        mm.online_block(2).unwrap();
        assert!(!reporter.has_work(), "{config:?}");
        host.reports.clear();
        reporter.resume();
        settle(&mut reporter, &mut host);
        let section = G.section_range(2);
        let mut reports = host.reports.iter().flatten();
        assert!(reports.any(|range| section.contains(range.start)), "{config:?}");
    }
}

fn growing(config: Config) -> Config {
    Config { hotplug_lock: HotplugLock::Tries, grows: true, ..config }
}

#[test]
fn tracker_grows_before_memory_comes_online() {
    for config in every_config().map(growing) {
        let mm = Arc::new(Mm::new(&Layout { sections: 6, ..Layout::flat(G, 1, 4) }));
        let mut reporter = Reporter::new(Arc::clone(&mm), config).unwrap();
        settle(&mut reporter, &mut Host::default());
        mm.add_section(5, ZoneId(0));
        mm.online_block(5).unwrap();
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        assert_eq!(host.pages(), 32768, "{config:?}");
        assert!(
            host.reports.iter().flatten().all(|range| G.section_range(5).contains(range.start))
        );
    }
}

#[test]
fn pass_beside_hotplug_leaves_all_marked() {
    let marked = every_config().filter(|config| config.tracker != TrackerKind::ReportedFlag);
    for config in marked.map(growing) {
        let (mm, mut reporter) = guest(4, config);
        let mut host = Host::default();
        let hotplug = mm.lock_hotplug();
        let stats = reporter.pass(&mut host);
        assert!(stats.busy > 0 && stats.pages == 0, "{config:?}: {stats:?}");
        assert!(reporter.has_work(), "{config:?}");
        drop(hotplug);
        settle(&mut reporter, &mut host);
        assert_eq!(host.pages(), 4 * 32768, "{config:?}");
    }
}
