// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains as an oracle reads them: byte by byte, with no regard for speed or for system calls.

use arbitrary::Arbitrary;

use super::guest::{Guest, Image, PAGE, PAGES};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where the targets put the queue's table, an indirect table and lists.
pub(crate) const TABLE: u64 = 0;
pub(crate) const OTHER_TABLE: u64 = 6 * PAGE + 0xf00;
pub(crate) const LIST: u64 = 10 * PAGE;
/// At the end of the second region, so that lists run out of memory.
pub(crate) const LAST_LIST: u64 = 12 * PAGE - 64;

/// A descriptor as the input names it: mostly near something.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    at: Place,
    len: Length,
    flags: u8,
    next: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Place {
    Page(u8),
    Near(u32),
    OtherTable,
    List(u8),
    LastList,
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Pages(u8),
    Few(u8),
    Descriptors(u8),
    Any(u32),
}

impl Place {
    pub(crate) fn gpa(self) -> u64 {
        match self {
            Self::Page(page) => u64::from(page) % (PAGES + 2) * PAGE,
            Self::Near(gpa) => u64::from(gpa) % ((PAGES + 2) * PAGE),
            Self::OtherTable => OTHER_TABLE,
            Self::List(at) => LIST + 4 * u64::from(at),
            Self::LastList => LAST_LIST,
            Self::Any(gpa) => gpa,
        }
    }
}

impl Descriptor {
    fn bytes(self) -> [u8; 16] {
        let len = match self.len {
            Length::Pages(pages) => u32::from(pages) * 4096,
            Length::Few(bytes) => u32::from(bytes),
            Length::Descriptors(count) => u32::from(count) * 16,
            Length::Any(len) => len,
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.at.gpa().to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&u16::from(self.flags & 7).to_le_bytes());
        bytes[14..].copy_from_slice(&u16::from(self.next).to_le_bytes());
        bytes
    }
}

/// Writes a table of at most 64 descriptors.
pub(crate) fn write_table(guest: &Guest, at: u64, table: &[Descriptor]) {
    let bytes: Vec<u8> = table.iter().take(64).flat_map(|descriptor| descriptor.bytes()).collect();
    guest.write(at, &bytes);
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) gpa: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

/// The buffers of a chain in the order in which they come; none if it breaks.
pub(crate) fn walk(image: &Image, table: u64, queue_size: u16, head: u16) -> Option<Vec<Buffer>> {
    let mut buffers = Vec::new();
    let (mut table, mut entries, mut direct) = (table, u32::from(queue_size), true);
    let mut index = head;
    loop {
        if u32::from(index) >= entries || buffers.len() >= usize::from(queue_size) {
            return None;
        }
        let raw: [u8; 16] = image.bytes(table.checked_add(u64::from(index) * 16)?)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        let gpa = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let flags = u16::from_le_bytes([f0, f1]);
        if flags & INDIRECT != 0 {
            if !direct || flags & NEXT != 0 || len == 0 || len % 16 != 0 {
                return None;
            }
            (table, entries, direct, index) = (gpa, len / 16, false, 0);
            continue;
        }
        buffers.push(Buffer { gpa, len, writable: flags & WRITE != 0 });
        if flags & NEXT == 0 {
            return Some(buffers);
        }
        index = u16::from_le_bytes([n0, n1]);
    }
}

/// The little-endian numbers of 32 bits in a buffer, as many as are memory from its start on.
pub(crate) fn numbers(image: &Image, buffer: Buffer) -> impl Iterator<Item = u32> {
    let at = move |i: u32| buffer.gpa.checked_add(u64::from(i) * 4);
    (0..buffer.len / 4)
        .map_while(move |i| at(i).and_then(|gpa| image.bytes(gpa)))
        .map(u32::from_le_bytes)
}
