// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes of a zone and of its per-CPU lists, as Linux shows them in `/proc/zoneinfo`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// One CPU's lists of a zone, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuLists {
    /// Pages on them.
    pub(super) count: u64,
    /// At this many, some return to the zone.
    pub(super) high: u64,
    /// The least that `high` may be.
    pub(super) high_min: u64,
    /// The most.
    pub(super) high_max: u64,
    /// Pages that move at once.
    pub(super) batch: u64,
}

/// A zone, in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Zone {
    /// The number of its node.
    pub(super) node: u32,
    /// Its name, `DMA32`.
    pub(super) name: String,
    /// Sizes and watermarks by name: `free`, `boost`, `min`, `low`, `high`, `managed`.
    pub(super) pages: BTreeMap<String, u64>,
    /// Pages that it keeps from allocations which may use each higher zone (`lowmem_reserve`).
    pub(super) protection: Vec<u64>,
    /// Its lists by CPU.
    pub(super) cpus: Vec<CpuLists>,
}

impl Zone {
    /// Pages by name; 0 if it has none.
    pub(super) fn pages(&self, name: &str) -> u64 {
        self.pages.get(name).copied().unwrap_or(0)
    }

    /// Pages on the lists of all CPUs.
    pub(super) fn on_lists(&self) -> u64 {
        self.cpus.iter().map(|lists| lists.count).sum()
    }
}

/// The zones of `/proc/zoneinfo` that have pages.
pub(super) fn parse(text: &str) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    for line in text.lines() {
        if let Some((node, name)) =
            line.strip_prefix("Node ").and_then(|node| node.split_once("zone"))
        {
            let node = node.trim().trim_end_matches(',').parse().unwrap_or_default();
            zones.push(Zone { node, name: name.trim().to_owned(), ..Zone::default() });
            continue;
        }
        let Some(zone) = zones.last_mut() else { continue };
        let line = line.trim();
        if let Some(reserve) = line.strip_prefix("protection:") {
            let numbers = reserve.split(|c: char| !c.is_ascii_digit());
            zone.protection = numbers.filter_map(|number| number.parse().ok()).collect();
            continue;
        }
        let line = line.strip_prefix("pages ").unwrap_or(line);
        let mut words = line.split_whitespace();
        let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse::<u64>))
        else {
            continue;
        };
        match (name, zone.cpus.last_mut()) {
            ("cpu:", _) => zone.cpus.push(CpuLists::default()),
            ("count:", Some(lists)) => lists.count = value,
            ("high:", Some(lists)) => lists.high = value,
            ("high_min:", Some(lists)) => lists.high_min = value,
            ("high_max:", Some(lists)) => lists.high_max = value,
            ("batch:", Some(lists)) => lists.batch = value,
            _ => {
                zone.pages.entry(name.to_owned()).or_insert(value);
            }
        }
    }
    zones.retain(|zone| zone.pages("managed") > 0);
    zones
}

/// Free blocks of exactly a pageblock in all zones of `/proc/buddyinfo`.
pub(super) fn free_pageblocks(buddyinfo: &str) -> u64 {
    const BEFORE_ORDERS: usize = 4;
    let of_order = |line: &str| line.split_whitespace().nth(BEFORE_ORDERS + 9)?.parse::<u64>().ok();
    buddyinfo.lines().filter_map(of_order).sum()
}

/// The largest zone, where nearly all of the guest's memory is.
///
/// # Errors
/// If the text has none.
pub(super) fn largest(text: &str) -> Result<Zone> {
    let zones = parse(text).into_iter();
    zones.max_by_key(|zone| zone.pages("managed")).context("/proc/zoneinfo: no zone with pages")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Node 0, zone      DMA
  pages free     3840
        boost    0
        min      60
        low      75
        high     90
        managed  3840
        protection: (0, 948, 948, 948, 948)
  pagesets
    cpu: 0
              count:    0
              high:     480
              batch:    1
              high_min: 37
              high_max: 240
Node 0, zone    DMA32
  per-node stats
      nr_inactive_anon 4
  pages free     200000
        boost    0
        min      3900
        low      4875
        high     5850
        managed  242688
        protection: (0, 0, 0, 0, 0)
      nr_free_pages 200000
      high     1
  pagesets
    cpu: 0
              count:    100
              high:     2437
              batch:    63
              high_min: 2437
              high_max: 15168
  vm stats threshold: 12
    cpu: 1
              count:    11
              high:     2500
              batch:    63
              high_min: 2437
              high_max: 15168
  vm stats threshold: 12
Node 0, zone   Normal
  pages free     0
        managed  0
Node 1, zone  Movable
  pages free     32000
        managed  32768
";

    #[test]
    fn zoneinfo_is_read_by_zone_and_cpu() {
        let zones = parse(TEXT);
        assert_eq!(
            zones.iter().map(|zone| zone.name.as_str()).collect::<Vec<_>>(),
            ["DMA", "DMA32", "Movable"]
        );
        assert_eq!(zones.iter().map(|zone| zone.node).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(zones[0].protection, [0, 948, 948, 948, 948]);
        let zone = largest(TEXT).unwrap();
        assert_eq!(
            (zone.pages("free"), zone.pages("min"), zone.pages("high")),
            (200_000, 3900, 5850)
        );
        assert_eq!(zone.on_lists(), 111);
        let lists = CpuLists { count: 11, high: 2500, high_min: 2437, high_max: 15_168, batch: 63 };
        assert_eq!(zone.cpus[1], lists);
        let buddies = "\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3
Node 0, zone    DMA32      5      4      4      3      3      2      2      4      5      6    200
";
        assert_eq!(free_pageblocks(buddies), 7);
        assert!(largest("Node 0, zone DMA\n").is_err());
    }
}
