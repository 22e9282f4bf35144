// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Arithmetic on ranges of guest physical memory. Pure: no system call, no guest memory.
//!
//! The guest names every number here, so every sum is checked and nothing panics, whatever comes.

/// A non-empty, half-open range of guest physical addresses, in bytes, that does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GuestRange {
    start: u64,
    end: u64,
}

/// Why an address and a length from the guest are not a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RangeError {
    /// The length is zero.
    #[error("a range of no bytes")]
    Empty,
    /// Address plus length passes the end of the 64-bit address space.
    #[error("a range that passes the end of the address space")]
    Wraps,
}

impl GuestRange {
    /// The range of `len` bytes that starts at guest physical address `gpa`.
    ///
    /// # Errors
    /// [`RangeError`] if `len` is zero or `gpa + len` does not fit 64 bits.
    pub(crate) fn new(gpa: u64, len: u64) -> Result<Self, RangeError> {
        if len == 0 {
            return Err(RangeError::Empty);
        }
        let end = gpa.checked_add(len).ok_or(RangeError::Wraps)?;
        Ok(Self { start: gpa, end })
    }

    /// Guest physical address of the first byte.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Guest physical address past the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Length in bytes, never zero.
    #[allow(clippy::len_without_is_empty)] // never empty, by construction
    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }

    /// What is left behind the first `bytes` bytes; `None` if nothing is.
    pub(crate) fn after(&self, bytes: u64) -> Option<Self> {
        let start = self.start.checked_add(bytes).filter(|start| *start < self.end)?;
        Some(Self { start, end: self.end })
    }
}

/// Sorts `ranges` and joins those that touch or overlap, in place and without allocating.
///
/// Linux fills a report from the end of its list, so that most ranges of a chain are adjacent and
/// descending; merged, 32 of them become a handful and each one costs a single call.
///
/// Returns the number of bytes that were named more than once, as far as that fits: an operator may
/// pin all addresses a thousand times.
pub(crate) fn merge(ranges: &mut Vec<GuestRange>) -> u64 {
    ranges.sort_unstable();
    let mut overlap: u64 = 0;
    ranges.dedup_by(|next, merged| {
        // `dedup_by` hands out neighbours of the sorted list, so `next.start >= merged.start`.
        if next.start > merged.end {
            return false;
        }
        overlap = overlap.saturating_add(merged.end.min(next.end) - next.start);
        merged.end = merged.end.max(next.end);
        true
    });
    overlap
}

/// A part of a merged range, as [`split`] cuts it at the borders of the regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Lies whole within one region.
    Inside {
        /// Index of the region in the list given to [`split`].
        region: usize,
        /// The part of the range.
        range: GuestRange,
    },
    /// Lies in no region: not guest memory.
    Outside(GuestRange),
}

/// Cuts `range` at the borders of `regions`, which are sorted by address and do not overlap.
///
/// The pieces come in ascending order and cover the range exactly.
pub(crate) fn split<'a, R>(range: GuestRange, regions: &'a [R]) -> impl Iterator<Item = Piece> + 'a
where
    R: AsRef<GuestRange>,
{
    let mut at = range.start;
    let mut next = regions.partition_point(|region| region.as_ref().end <= range.start);
    std::iter::from_fn(move || {
        if at == range.end {
            return None;
        }
        let piece = match regions.get(next).map(AsRef::as_ref) {
            Some(region) if region.start <= at => {
                let inside = GuestRange { start: at, end: range.end.min(region.end) };
                let piece = Piece::Inside { region: next, range: inside };
                next += 1;
                at = inside.end;
                piece
            }
            other => {
                let border = other.map_or(range.end, |region| region.start);
                let outside = GuestRange { start: at, end: range.end.min(border) };
                at = outside.end;
                Piece::Outside(outside)
            }
        };
        Some(piece)
    })
}

/// The largest part of `[offset, offset + len)` that begins and ends on a multiple of `page_size`
/// bytes, as offset and length; `None` if no whole page lies within, or on overflow.
///
/// A page that is only partly free must stay: a punch would zero its free part, which frees
/// nothing, and rounding outward would destroy memory in use. `page_size` is a power of two.
pub(crate) fn round_inward(offset: u64, len: u64, page_size: u64) -> Option<(u64, u64)> {
    let mask = page_size.checked_sub(1)?;
    let start = offset.checked_add(mask)? & !mask;
    let end = offset.checked_add(len)? & !mask;
    (end > start).then(|| (start, end - start))
}

/// How the pages at the beginning of a range stand to what is pinned, see [`leading`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leading {
    /// As many bytes, whole pages, touch nothing that is pinned.
    Free(u64),
    /// As many bytes, whole pages, each touch something that is pinned.
    Pinned(u64),
}

/// How many pages at the beginning of `range` can be treated alike: up to the next page that one of
/// `pins` touches, or up to the end of that pin.
///
/// `range` begins on a border of the pages that back it and is a multiple of `page_size` bytes
/// long, so its pages are counted from its start and a page that is pinned in part is pinned.
/// `pins` are sorted and do not touch each other, as [`merge`] leaves them. The answer is never
/// zero bytes, unless `page_size` is.
pub(crate) fn leading(range: GuestRange, page_size: u64, pins: &[GuestRange]) -> Leading {
    let next = pins.partition_point(|pin| pin.end <= range.start);
    let Some(pin) = pins.get(next).filter(|pin| pin.start < range.end) else {
        return Leading::Free(range.len());
    };
    let page_of = |bytes: u64| bytes.checked_div(page_size).unwrap_or(0) * page_size;
    let free = page_of(pin.start.saturating_sub(range.start));
    if free > 0 {
        return Leading::Free(free);
    }
    // At least one byte; the last page of the pin ends within the range, since both are whole.
    let last = pin.end.min(range.end) - range.start - 1;
    Leading::Pinned(page_of(last) + page_size)
}

#[cfg(test)]
#[cfg(not(interleavings))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn range(start: u64, len: u64) -> GuestRange {
        GuestRange::new(start, len).unwrap()
    }

    impl AsRef<GuestRange> for GuestRange {
        fn as_ref(&self) -> &GuestRange {
            self
        }
    }

    #[test]
    fn a_range_is_neither_empty_nor_wrapping() {
        assert_eq!(GuestRange::new(5, 0), Err(RangeError::Empty));
        assert_eq!(GuestRange::new(u64::MAX, 0), Err(RangeError::Empty));
        assert_eq!(GuestRange::new(u64::MAX, 1), Err(RangeError::Wraps));
        assert_eq!(GuestRange::new(1, u64::MAX), Err(RangeError::Wraps));
        assert_eq!(range(u64::MAX - 1, 1).end(), u64::MAX);
    }

    #[test]
    fn what_is_left_ends_where_the_range_does() {
        assert_eq!(range(5, 10).after(0), Some(range(5, 10)));
        assert_eq!(range(5, 10).after(9), Some(range(14, 1)));
        assert_eq!(range(5, 10).after(10), None);
        assert_eq!(range(5, 10).after(u64::MAX), None);
    }

    #[test]
    fn a_descending_report_becomes_one_range() {
        let mut ranges: Vec<_> = (0..32).rev().map(|i| range(i << 21, 1 << 21)).collect();
        assert_eq!(merge(&mut ranges), 0);
        assert_eq!(ranges, [range(0, 32 << 21)]);
    }

    #[test]
    fn rounding_at_the_address_space_end_never_overflows() {
        assert_eq!(round_inward(u64::MAX - 1, 1, 4096), None);
        assert_eq!(round_inward(u64::MAX - 8191, 8191, 4096), Some((u64::MAX - 8191, 4096)));
        assert_eq!(round_inward(0, u64::MAX, 4096), Some((0, u64::MAX - 4095)));
        assert_eq!(round_inward(0, 4096, 0), None);
    }

    /// How often each byte of a small address space is named: the naive reference.
    fn count(ranges: &[GuestRange]) -> BTreeMap<u64, u64> {
        let mut bytes = BTreeMap::new();
        for byte in ranges.iter().flat_map(|r| r.start..r.end) {
            *bytes.entry(byte).or_insert(0) += 1;
        }
        bytes
    }

    fn small_ranges(most: usize) -> impl Strategy<Value = Vec<GuestRange>> {
        prop::collection::vec((0u64..200, 1u64..40).prop_map(|(s, l)| range(s, l)), 0..most)
    }

    proptest! {
        #[test]
        fn merge_keeps_every_byte_once(given in small_ranges(20)) {
            let naive = count(&given);
            let mut merged = given.clone();
            let overlap = merge(&mut merged);
            prop_assert_eq!(overlap, naive.values().map(|n| n - 1).sum::<u64>());
            let kept = count(&merged);
            prop_assert!(kept.values().all(|&n| n == 1));
            prop_assert!(kept.keys().eq(naive.keys()));
            // As few ranges as there can be: neighbours neither touch nor overlap.
            prop_assert!(merged.windows(2).all(|w| w[0].end < w[1].start));
        }

        #[test]
        fn split_covers_the_range_in_order(
            (start, len) in (0u64..260, 1u64..260),
            mut regions in small_ranges(8),
        ) {
            // Regions may be adjacent without being one: keep the borders of what overlaps not.
            regions.sort_unstable();
            let mut end = 0;
            regions.retain(|r| {
                let keep = r.start >= end;
                if keep { end = r.end }
                keep
            });
            let mut at = start;
            for piece in split(range(start, len), &regions) {
                let part = match piece {
                    Piece::Inside { region, range } => {
                        let region = regions[region];
                        prop_assert!(region.start <= range.start && range.end <= region.end);
                        range
                    }
                    Piece::Outside(range) => {
                        for region in &regions {
                            prop_assert!(region.end <= range.start || range.end <= region.start);
                        }
                        range
                    }
                };
                prop_assert_eq!(part.start, at);
                prop_assert!(part.end > part.start);
                at = part.end;
            }
            prop_assert_eq!(at, start + len);
        }

        #[test]
        fn round_inward_keeps_whole_pages_only(
            offset in 0u64..500, len in 0u64..500, shift in 0u32..7,
        ) {
            let page_size = 1u64 << shift;
            // The naive reference: a page is kept if each of its bytes is in the range.
            let whole: Vec<u64> = (0..1000 / page_size)
                .filter(|p| p * page_size >= offset && (p + 1) * page_size <= offset + len)
                .collect();
            let naive = whole.first().map(|first| {
                (first * page_size, u64::try_from(whole.len()).unwrap() * page_size)
            });
            prop_assert_eq!(round_inward(offset, len, page_size), naive);
        }

        #[test]
        fn leading_agrees_with_a_page_by_page_reference(
            start in 0u64..100, pages in 1u64..30, shift in 0u32..5, pins in small_ranges(8),
        ) {
            let page_size = 1u64 << shift;
            let whole = range(start, pages * page_size);
            let naive: Vec<bool> = (0..pages).map(|page| {
                let (first, end) = (start + page * page_size, start + (page + 1) * page_size);
                pins.iter().any(|pin| pin.start < end && first < pin.end)
            }).collect();
            let mut merged = pins.clone();
            merge(&mut merged);
            let (mut at, mut got) = (whole.start, Vec::new());
            while at < whole.end {
                let left = GuestRange { start: at, end: whole.end };
                let (len, pinned) = match leading(left, page_size, &merged) {
                    Leading::Free(len) => (len, false),
                    Leading::Pinned(len) => (len, true),
                };
                prop_assert!(len > 0 && len.is_multiple_of(page_size));
                got.extend(std::iter::repeat_n(pinned, usize::try_from(len / page_size).unwrap()));
                at += len;
            }
            prop_assert_eq!(at, whole.end);
            prop_assert_eq!(got, naive);
        }

        #[test]
        fn nothing_panics_on_any_numbers(
            gpa: u64, len: u64, offset: u64, page_size: u64,
        ) {
            let _ = round_inward(offset, len, page_size);
            if let Ok(range) = GuestRange::new(gpa, len) {
                let regions = GuestRange::new(offset, page_size).ok();
                if let Some(pages) = len.checked_next_multiple_of(4096).and_then(|len| GuestRange::new(gpa, len).ok()) {
                    let _ = leading(pages, 4096, regions.as_slice());
                }
                let pieces = split(range, regions.as_slice());
                prop_assert_eq!(
                    pieces.map(|p| match p { Piece::Inside { range, .. } | Piece::Outside(range) => range.len() }).sum::<u64>(),
                    len
                );
            }
        }
    }
}
