// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The arithmetic of a discard, from what a chain names to the calls: merge, split at borders, round inward,
//! spare what is pinned. Everything lies within some hundred bytes, anywhere in the address space.
//!
//! The oracle looks at each page of each region by itself, byte by byte.

use arbitrary::Arbitrary;

use super::ranges::{GuestRange, Leading, Piece, leading, merge, round_inward, split};

/// Ranges, the regions that they fall on, and what is pinned in their files.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    /// Everything lies at the end of the address space, or where numbers become negative.
    base: Option<bool>,
    page_shift: u8,
    /// Bytes up to each region, its bytes, and the page of its file with which it begins.
    regions: Vec<(u8, u8, u8)>,
    ranges: Vec<(u8, u8)>,
    /// Offsets in the file of each region.
    pins: Vec<(u8, u8)>,
}

/// Bytes of the guest's address space, a bit each for the oracle, which is faster than a loop. A file has twice
/// as many.
const BYTES: u64 = 64;

struct Region {
    range: GuestRange,
    offset: u64,
}

impl AsRef<GuestRange> for Region {
    fn as_ref(&self) -> &GuestRange {
        &self.range
    }
}

/// The bits from `start` to `end`.
fn bits(start: u64, end: u64) -> u128 {
    let below =
        |bit: u64| 1_u128.unbounded_shl(u32::try_from(bit).unwrap_or(u32::MAX)).wrapping_sub(1);
    below(end) & !below(start)
}

pub(crate) fn run(input: Input) {
    let base = match input.base {
        None => 0,
        Some(true) => u64::MAX - BYTES,
        Some(false) => 1 << 63,
    };
    let page = 1 << (input.page_shift % 4);
    let mut regions = Vec::new();
    let mut at = 0;
    for (gap, len, first) in input.regions.iter().take(4) {
        let start = at + u64::from(*gap % 16);
        let len = u64::from(*len % 64).min(BYTES.saturating_sub(start));
        let Ok(range) = GuestRange::new(base + start.min(BYTES), len) else { continue };
        regions.push(Region { range, offset: page * u64::from(first % 8) });
        at = start + len;
    }
    let (mut named, mut twice) = (0_u128, 0);
    let mut ranges: Vec<GuestRange> = Vec::new();
    for (start, len) in input.ranges.iter().take(8) {
        let start = u64::from(*start) % BYTES;
        let end = BYTES.min(start + u64::from(*len % 64));
        ranges.extend(GuestRange::new(base + start, end - start));
        twice += u64::from((named & bits(start, end)).count_ones());
        named |= bits(start, end);
    }
    let mut pinned = 0_u128;
    let mut pins: Vec<GuestRange> = Vec::new();
    for (start, len) in input.pins.iter().take(4) {
        let (start, len) = (u64::from(*start) % (2 * BYTES), u64::from(*len));
        pins.extend(GuestRange::new(start, len));
        pinned |= bits(start, start + len);
    }
    let _ = merge(&mut pins);

    assert_eq!(merge(&mut ranges), twice, "another number of bytes is named twice");
    let apart = ranges.windows(2).all(|pair| pair[0].end() < pair[1].start());
    assert!(apart, "merged ranges touch: {ranges:?}");

    // The bytes of its file that are discarded of each region.
    let mut discarded = [0_u128; 4];
    for range in &ranges {
        let mut at = range.start();
        for piece in split(*range, &regions) {
            let part = match piece {
                Piece::Inside { range, .. } | Piece::Outside(range) => range,
            };
            assert_eq!(part.start(), at, "a piece begins elsewhere");
            at = part.end();
            let Piece::Inside { region: index, range } = piece else { continue };
            let region = &regions[index];
            let offset = range.start() - region.range.start() + region.offset;
            let Some((first, len)) = round_inward(offset, range.len(), page) else { continue };
            let mut rest = GuestRange::new(first, len).ok();
            while let Some(left) = rest {
                let (free, len) = match leading(left, page, &pins) {
                    Leading::Free(len) => (true, len),
                    Leading::Pinned(len) => (false, len),
                };
                assert!(len > 0 && len <= left.len() && len % page == 0, "{len} of {left:?}");
                if free {
                    let bytes = bits(left.start(), left.start() + len);
                    assert_eq!(discarded[index] & bytes, 0, "discarded twice: {left:?}");
                    discarded[index] |= bytes;
                }
                rest = left.after(len);
            }
        }
        assert_eq!(at, range.end(), "the pieces end elsewhere");
    }
    for (region, discarded) in regions.iter().zip(&discarded) {
        let (first, end) = (region.offset, region.offset + region.range.len());
        // What is named, as offsets in the file.
        let named = (named >> (region.range.start() - base) << first) & bits(first, end);
        let mut expected = 0;
        for start in (0..2 * BYTES).step_by(1 << (input.page_shift % 4)) {
            let whole = bits(start, start + page);
            if named & whole == whole && pinned & whole == 0 {
                expected |= whole;
            }
        }
        assert_eq!(*discarded, expected, "of {:?}, offset {first}", region.range);
    }
}
