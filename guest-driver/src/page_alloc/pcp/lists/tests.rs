// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

/// The lists of one of two CPUs of the larger zone of a 2 GiB guest of Linux 7.3.4.
fn lists(tunes: bool) -> Pcp {
    let mut pcp = Pcp::new(&Geometry::LINUX);
    pcp.set_size((&Geometry::LINUX, tunes), 496_500, 13_971, 2);
    pcp
}

#[test]
fn high_lies_between_shares_of_watermark_and_zone() {
    let pcp = lists(true);
    assert_eq!((pcp.batch, pcp.high, pcp.high_min, pcp.high_max), (63, 6_985, 6_985, 31_031));
    let pcp = lists(false);
    assert_eq!((pcp.high, pcp.high_min, pcp.high_max), (6_985, 6_985, 6_985));
    let PcpSizes { count, high, .. } = pcp.sizes();
    assert_eq!((count, high), (0, 6_985));
    let mut small = Pcp::new(&Geometry::LINUX);
    small.set_size((&Geometry::LINUX, true), 32_768, 200, 4);
    assert_eq!((small.batch, small.high_min, small.high_max), (7, 50, 1_024));
    small.set_size((&Geometry::TINY, true), 16, 10, 2);
    assert_eq!((small.batch, small.high, small.high_max), (1, 5, 5), "not tuned");
}

#[test]
fn high_rises_by_a_batch_with_each_refill() {
    let linux = &Geometry::LINUX;
    let mut pcp = lists(true);
    assert_eq!(pcp.nr_alloc(linux, 9, false), 2);
    assert_eq!(pcp.high, 6_985 + 63);
    assert_eq!(pcp.nr_alloc(linux, 0, true), 63);
    assert_eq!(pcp.high, 6_985 + 63, "the zone is low");
    assert_eq!(pcp.nr_alloc(linux, 0, false), 126);
    assert_eq!(pcp.high, 6_985 + 63 + 126);
    for _ in 0..20 {
        pcp.nr_alloc(linux, 0, false);
    }
    assert_eq!(pcp.high, 31_031);
    let mut fixed = lists(false);
    assert_eq!(fixed.nr_alloc(linux, 9, false), 2);
    assert_eq!(fixed.high, 6_985);
}

#[test]
fn high_grows_to_hold_what_was_freed() {
    let linux = &Geometry::LINUX;
    let mut pcp = lists(true);
    (pcp.count, pcp.free_count, pcp.high) = (8_000, 1_900, 6_985);
    assert_eq!(pcp.nr_free(linux, 0, false), Some(1_901));
    assert_eq!(pcp.high, 6_985, "1,901 and a batch fit");
    (pcp.batch, pcp.free_count, pcp.high_min, pcp.high) = (63, 2_016, 252, 252);
    assert_eq!(pcp.nr_free(linux, 0, false), Some(252 - 63), "a batch stays");
    assert_eq!(pcp.high, 2_016 + 63);
}

#[test]
fn high_shrinks_by_frees_below_the_high_watermark() {
    let linux = &Geometry::LINUX;
    let mut pcp = lists(true);
    (pcp.count, pcp.high, pcp.free_count) = (5_000, 10_000, 999);
    assert_eq!(pcp.nr_free(linux, 0, true), None, "fewer than the least");
    assert_eq!(pcp.high, 9_000);
    pcp.count = 8_000;
    assert_eq!(pcp.nr_free(linux, 0, true), Some(1_001));
    assert_eq!(pcp.high, 7_999);
    assert!(pcp.nr_free(linux, 0, true).is_some());
    assert_eq!(pcp.high, 6_997);
    assert!(pcp.nr_free(linux, 0, true).is_some());
    assert_eq!(pcp.high, 6_985);
}

#[test]
fn high_decays_by_an_eighth() {
    let linux = &Geometry::LINUX;
    let mut pcp = lists(true);
    pcp.high = 16_000;
    assert_eq!((pcp.decay_high(linux), pcp.high), (0, 14_000));
    pcp.count = 14_000;
    assert_eq!((pcp.decay_high(linux), pcp.high), (1_750, 12_250));
    // No more than 32 batches at once.
    (pcp.count, pcp.high) = (31_000, 31_031);
    assert_eq!((pcp.decay_high(linux), pcp.high), (2_016, 28_984));
    (pcp.count, pcp.high) = (7_200, 7_500);
    assert_eq!((pcp.decay_high(linux), pcp.high), (215, 6_985));
    assert!(!pcp.is_above_min());
}

#[test]
fn batch_is_one_less_than_a_power_of_two() {
    let batch = |mib: u64| batch_size(&Geometry::LINUX, mib << 8);
    assert_eq!([16, 32, 48, 64].map(batch), [1, 1, 3, 3]);
    assert_eq!([128, 256, 512, 1024, 4096].map(batch), [7, 15, 31, 63, 63]);
    assert_eq!(batch_size(&Geometry::TINY, 1 << 20), 1);
}
