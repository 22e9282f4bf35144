// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Cutting at the borders of regions.

use super::super::ranges::{Piece, split};
use super::{GuestRange, Space};

/// All lists of regions in `bytes` bytes, as the region that each byte is in.
fn tables(bytes: u64) -> Vec<Vec<Option<usize>>> {
    let mut tables = vec![Vec::new()];
    for _ in 0..bytes {
        tables = tables.into_iter().flat_map(longer).collect();
    }
    tables
}

/// The next byte is in no region, begins one, or is in the region of the byte before.
fn longer(table: Vec<Option<usize>>) -> impl Iterator<Item = Vec<Option<usize>>> {
    let begun = table.iter().flatten().max().map_or(0, |last| last + 1);
    let last = table.last().copied().flatten();
    let next = [Some(None), Some(Some(begun)), last.map(Some)];
    next.into_iter().flatten().map(move |byte| [table.as_slice(), &[byte]].concat())
}

#[test]
fn split_agrees_with_a_byte_oracle() {
    let mut cases = 0;
    for space in Space::both(8) {
        for table in tables(8) {
            let (mut regions, mut first) = (Vec::new(), 0);
            for region in table.chunk_by(|a, b| a == b) {
                if region[0].is_some() {
                    regions.push(space.range(first, region.len() as u64));
                }
                first += region.len() as u64;
            }
            for range in space.ranges() {
                let pieces: Vec<_> = split(range, &regions).collect();
                assert_eq!(pieces, expected(space, &table, range), "{range:x?} {regions:x?}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 114_984);
}

/// Bytes of one region, or of none, that lie side by side are one piece.
fn expected(space: Space, table: &[Option<usize>], range: GuestRange) -> Vec<Piece> {
    let first = usize::try_from(range.start() - space.base).unwrap();
    let past = usize::try_from(range.end() - space.base).unwrap();
    let mut at = range.start();
    let piece = |bytes: &[Option<usize>]| {
        let range = GuestRange::new(at, bytes.len() as u64).unwrap();
        at = range.end();
        bytes[0].map_or(Piece::Outside(range), |region| Piece::Inside { region, range })
    };
    table[first..past].chunk_by(|a, b| a == b).map(piece).collect()
}
