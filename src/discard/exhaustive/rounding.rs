// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rounding inward.

use super::super::ranges::round_inward;
use super::{edges, ones};

#[test]
fn rounding_agrees_with_a_page_oracle() {
    let mut cases = 0;
    for page_size in [1, 2, 4, 8, 16] {
        for offset in 0..32 {
            for len in 0..32 {
                let bytes = ones(len) << offset;
                let page = |page| ones(page_size) << (page * page_size);
                let whole = (0..63 / page_size).filter(|p| bytes & page(*p) == page(*p));
                let whole: Vec<_> = whole.collect();
                let expected =
                    whole.first().map(|first| (first * page_size, whole.len() as u64 * page_size));
                assert_eq!(round_inward(offset, len, page_size), expected);
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 5_120);
}

/// In 128 bits, where no sum overflows.
fn rounded(offset: u64, len: u64, page_size: u64) -> Option<(u64, u64)> {
    let (page, end) = (u128::from(page_size), u128::from(offset) + u128::from(len));
    let (first, past) = (u128::from(offset).div_ceil(page) * page, end / page * page);
    let fits = end <= u128::from(u64::MAX) && first < past;
    fits.then(|| (first.try_into().unwrap(), (past - first).try_into().unwrap()))
}

#[test]
fn rounding_at_the_end_agrees_with_wide_numbers() {
    let mut cases = 0;
    for page_size in [1, 2, 4, 8, 16, 32, 64] {
        for offset in u64::MAX - 200..=u64::MAX {
            for len in 0..=210 {
                assert_eq!(round_inward(offset, len, page_size), rounded(offset, len, page_size));
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 296_877);
}

#[test]
fn rounding_every_page_size_agrees_at_its_edges() {
    let mut cases = 0;
    for page_size in (0..64).map(|shift| 1 << shift) {
        for offset in edges(page_size) {
            for len in edges(page_size) {
                assert_eq!(round_inward(offset, len, page_size), rounded(offset, len, page_size));
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 101_611);
}
