// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Buffers of statistics, one after the other: each sample says what its buffer did, and nothing else.

use std::sync::Arc;

use arbitrary::Arbitrary;
use vm_memory::GuestAddress;

use super::guest::Guest;
use super::model::{self, Descriptor, LIST, OTHER_TABLE, TABLE, write_table};
use crate::device::chain::ChainHead;
use crate::device::{Balloon, DeviceOptions, Outcome, QueueRole};
use crate::metrics::Counters;

/// What the driver sends, one buffer after the other.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    buffers: Vec<Buffer>,
}

#[derive(Arbitrary, Debug)]
struct Buffer {
    head: u8,
    table: Vec<Descriptor>,
    entries: Vec<(Tag, u64)>,
    rest: Vec<u8>,
    /// A buffer as Linux sends it, in place of the table.
    plain: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Tag {
    Known(u8),
    Any(u16),
}

thread_local! {
    static GUEST: Guest = Guest::new();
}

const STATISTICS: u64 = 1 << 1;

pub(crate) fn run(input: Input) {
    let options = DeviceOptions { statistics: true, ..DeviceOptions::default() };
    let balloon = Balloon::new(options, Arc::<Counters>::default());
    balloon.set_acked_features(STATISTICS);
    assert_eq!(balloon.role(2), Some(QueueRole::Statistics));
    GUEST.with(|guest| {
        let mut expected = None;
        for buffer in input.buffers.iter().take(8) {
            guest.clear();
            expected = send(guest, &balloon, buffer).or(expected);
            let sample = balloon.statistics();
            let got = sample
                .map(|sample| (sample.values.named().map(|(_, value)| value), sample.unknown_tags));
            assert_eq!(got, expected, "another sample than was sent");
        }
    });
}

/// The values by tag, and how many tags are not known.
type Sample = ([Option<u64>; 16], u32);

/// Has the device read a buffer, and says what the buffer means.
fn send(guest: &Guest, balloon: &Balloon, buffer: &Buffer) -> Option<Sample> {
    let mut list = Vec::new();
    for (tag, value) in buffer.entries.iter().take(300) {
        let tag = match tag {
            Tag::Known(tag) => u16::from(tag % 16),
            Tag::Any(tag) => *tag,
        };
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&value.to_le_bytes());
    }
    list.extend_from_slice(&buffer.rest);
    guest.write(LIST, &list);
    if buffer.plain {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&LIST.to_le_bytes());
        descriptor[8..12].copy_from_slice(&u32::try_from(list.len()).unwrap_or(0).to_le_bytes());
        guest.write(TABLE, &descriptor);
    } else {
        write_table(guest, TABLE, &buffer.table);
        write_table(guest, OTHER_TABLE, &buffer.table);
    }
    let (queue_size, index) = (64, u16::from(buffer.head) * u16::from(!buffer.plain));
    let head = ChainHead { table: GuestAddress(TABLE), queue_size, index };
    let before = guest.image();
    let request = balloon.collect(QueueRole::Statistics, head, &guest.memory);
    assert_eq!(balloon.finish(request, &guest.memory), Outcome::Keep);

    let chain = model::walk(&before, TABLE, queue_size, index)?;
    let mut bytes = Vec::new();
    for buffer in chain.iter().filter(|buffer| !buffer.writable) {
        let room = 2560 - bytes.len();
        let wanted = room.min(buffer.len as usize) as u64;
        let all = (0..wanted).map(|i| buffer.gpa.checked_add(i).and_then(|gpa| before.byte(gpa)));
        // A buffer of which a part is not memory says nothing.
        bytes.extend(all.collect::<Option<Vec<u8>>>().unwrap_or_default());
    }
    if bytes.len() < 10 || bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let (mut values, mut unknown) = ([None; 16], 0);
    for entry in bytes.chunks_exact(10) {
        let value = entry[2..].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        match values.get_mut(usize::from(entry[0]) + 256 * usize::from(entry[1])) {
            Some(slot) => *slot = Some(value),
            None => unknown += 1,
        }
    }
    Some((values, unknown))
}
