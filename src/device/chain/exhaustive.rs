// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains, tried in every shape that small tables allow, against the rules of virtio 1.3, 2.7.5.

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_INDIRECT;
use vm_memory::GuestAddress;

use super::tests::{NEXT, TABLE, memory, write};
use super::{ChainError, ChainHead};
use crate::discard::GuestMemory;

const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
const OTHER: u64 = 0x2000;
/// The buffers of each table have these addresses, and their index.
const DIRECT_BUFFERS: u64 = 0x1000;
const INDIRECT_BUFFERS: u64 = 0x2000;

/// A descriptor, as far as the rules for chains tell it from others.
#[derive(Clone, Copy, Debug)]
enum Link {
    End,
    Next(u16),
    /// An indirect table of so many bytes.
    Table(u32),
    /// The same, with a chain that goes on behind it.
    TableAndNext(u32),
}

/// What a walk visits, and how it ends.
type Walked = (Vec<u64>, Result<(), ChainError>);

fn put(memory: &GuestMemory, table: u64, index: u16, link: Link) {
    let buffer = u64::from(index) + if table == TABLE { DIRECT_BUFFERS } else { INDIRECT_BUFFERS };
    let raw = match link {
        Link::End => (buffer, 1, 0, 0),
        Link::Next(next) => (buffer, 1, NEXT, next),
        Link::Table(bytes) => (OTHER, bytes, INDIRECT, 0),
        Link::TableAndNext(bytes) => (OTHER, bytes, INDIRECT | NEXT, 0),
    };
    write(memory, table + 16 * u64::from(index), &[raw]);
}

fn walked(memory: &GuestMemory, queue_size: u16, index: u16) -> Walked {
    let mut seen = Vec::new();
    let head = ChainHead { table: GuestAddress(TABLE), queue_size, index };
    let end = head.walk(memory, |descriptor| seen.push(descriptor.addr().0));
    (seen, end)
}

/// The rules: buffers of the queue's table, of which the last may be an indirect table instead, all in
/// all no more than the queue has descriptors.
fn expected(direct: &[Link], indirect: &[Link], head: u16) -> Walked {
    let (mut seen, mut index, most) = (Vec::new(), head, direct.len());
    let bytes = loop {
        if seen.len() == most {
            return (seen, Err(ChainError::TooLong));
        }
        let link = direct.get(usize::from(index));
        if matches!(link, Some(Link::End | Link::Next(_))) {
            seen.push(DIRECT_BUFFERS + u64::from(index));
        }
        match link {
            None => return (seen, Err(ChainError::PastTable(index))),
            Some(Link::End) => return (seen, Ok(())),
            Some(Link::Next(next)) => index = *next,
            Some(Link::Table(bytes)) => break *bytes,
            Some(Link::TableAndNext(_)) => return (seen, Err(ChainError::IndirectWithNext)),
        }
    };
    if !matches!(bytes, 16 | 32 | 48) {
        return (seen, Err(ChainError::IndirectLength(bytes)));
    }
    let table = &indirect[..usize::try_from(bytes / 16).unwrap()];
    index = 0;
    loop {
        if seen.len() == most {
            return (seen, Err(ChainError::TooLong));
        }
        match table.get(usize::from(index)) {
            None => return (seen, Err(ChainError::PastTable(index))),
            Some(Link::Table(_) | Link::TableAndNext(_)) => {
                return (seen, Err(ChainError::NestedIndirect));
            }
            Some(Link::End) => {
                seen.push(INDIRECT_BUFFERS + u64::from(index));
                return (seen, Ok(()));
            }
            Some(Link::Next(next)) => {
                seen.push(INDIRECT_BUFFERS + u64::from(index));
                index = *next;
            }
        }
    }
}

/// All tables of `len` descriptors out of these.
fn tables(len: usize, links: &[Link]) -> Vec<Vec<Link>> {
    let longer = |tables: Vec<Vec<Link>>| {
        let with = |table: &Vec<Link>, link: &Link| [table.as_slice(), &[*link]].concat();
        tables.iter().flat_map(|table| links.iter().map(move |link| with(table, link))).collect()
    };
    (0..len).fold(vec![Vec::new()], |tables, _| longer(tables))
}

/// Every chain of a queue of two descriptors with an indirect table of three, and of three with two.
#[test]
fn chain_every_small_table_follows_the_rules() {
    use Link::{End, Next, Table, TableAndNext};
    let queue_links = [
        End,
        Next(0),
        Next(1),
        Next(2),
        Table(0),
        Table(16),
        Table(24),
        Table(32),
        Table(48),
        TableAndNext(16),
        Next(3),
    ];
    let inner_links = [End, Next(0), Next(1), Next(2), Table(16), Next(3)];
    let memory = memory();
    let mut cases = 0;
    for (queue_size, in_table) in [(1, 3), (2, 3), (3, 2)] {
        for indirect in tables(in_table, &inner_links) {
            // Behind a table of two lies one more that no rule allows to look at.
            let indirect = [indirect, vec![End; 3 - in_table]].concat();
            (0..).zip(&indirect).for_each(|(index, link)| put(&memory, OTHER, index, *link));
            for direct in tables(queue_size, &queue_links) {
                (0..).zip(&direct).for_each(|(index, link)| put(&memory, TABLE, index, *link));
                let queue_size = u16::try_from(queue_size).unwrap();
                for head in 0..=queue_size {
                    let expected = expected(&direct, &indirect, head);
                    assert_eq!(
                        walked(&memory, queue_size, head),
                        expected,
                        "{direct:?} {indirect:?}"
                    );
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 274_824);
}

/// An indirect table is read a part at a time: jumps across the borders of the parts, both ways.
#[test]
fn chain_long_indirect_table_is_read_where_it_points() {
    const LEN: u16 = 300;
    let memory = memory();
    put(&memory, TABLE, 0, Link::Table(16 * u32::from(LEN)));
    let near: Vec<u16> = [1, 127, 128, 129, 255, 256, 257, 298, 299].into();
    let mut cases = 0;
    for a in 1..LEN {
        for b in near.iter().copied().filter(|b| *b != a) {
            put(&memory, OTHER, 0, Link::Next(a));
            put(&memory, OTHER, a, Link::Next(b));
            put(&memory, OTHER, b, Link::End);
            let buffers = [0, a, b].map(|index| INDIRECT_BUFFERS + u64::from(index));
            assert_eq!(walked(&memory, 8, 0), (buffers.into(), Ok(())), "{a} {b}");
            cases += 1;
        }
        put(&memory, OTHER, a, Link::Next(LEN));
        let buffers = [0, a].map(|index| INDIRECT_BUFFERS + u64::from(index));
        assert_eq!(walked(&memory, 8, 0), (buffers.into(), Err(ChainError::PastTable(LEN))));
    }
    assert_eq!(cases, 2_682);
}

/// A table of four at every distance from the end of memory, and from the end of all addresses.
#[test]
fn chain_table_at_the_end_of_memory_is_cut_there() {
    let memory = memory();
    let end = 0x10000;
    let mut cases = 0;
    for room in 0..=64 {
        let whole = u16::try_from(room / 16).unwrap();
        for jump in 1..4 {
            let at = end - room;
            if whole > 0 {
                write(&memory, at, &[(7, 1, NEXT, jump)]);
            }
            if jump < whole {
                write(&memory, at + 16 * u64::from(jump), &[(9, 1, 0, 0)]);
            }
            let expected = match whole {
                0 => (vec![], Err(ChainError::Unreadable(0))),
                whole if jump < whole => (vec![7, 9], Ok(())),
                _ => (vec![7], Err(ChainError::Unreadable(jump))),
            };
            // As the queue's own table, and as an indirect one.
            let mut seen = Vec::new();
            let head = ChainHead { table: GuestAddress(at), queue_size: 4, index: 0 };
            let walk = head.walk(&memory, |descriptor| seen.push(descriptor.addr().0));
            assert_eq!((seen, walk), expected, "{room} {jump}");
            write(&memory, TABLE, &[(at, 64, INDIRECT, 0)]);
            assert_eq!(walked(&memory, 4, 0), expected, "{room} {jump}");
            cases += 2;
        }
        let nowhere = u64::MAX - room;
        for index in 0..4 {
            let head = ChainHead { table: GuestAddress(nowhere), queue_size: 4, index };
            assert_eq!(head.walk(&memory, |_| {}), Err(ChainError::Unreadable(index)));
            cases += 1;
        }
    }
    assert_eq!(cases, 650);
}
