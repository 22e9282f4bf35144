// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A fuzz target over what a daemon leaves to the next: the record's bytes, and the text in it.

use std::os::fd::AsFd;
use std::sync::Arc;

use arbitrary::Arbitrary;
use rustix::time::{ClockId, clock_gettime};

use super::record::Record;
use super::snapshot::{Left, SavedPin, Snapshot, decode, encode};
use crate::device::{Balloon, DeviceOptions, SavedBalloon};
use crate::discard::{Cause, MemoryOptions};
use crate::state::State;

/// What happens to a record, in this order.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    steps: Vec<Step>,
    text: Vec<u8>,
    device: Device,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Write(Vec<u8>),
    Message(Vec<u8>),
    ClearMessage,
    /// The daemon is killed while it writes: the copy that does not count is garbage.
    Killed(Vec<u8>),
    /// Bytes anywhere in the first page, which nothing but a fault puts there.
    Damage(u8, Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Device {
    features: Option<u8>,
    pages: u32,
    actual: Option<u32>,
    poison: Option<u32>,
    journal: Option<u64>,
    forced: bool,
    paused: bool,
    parked: bool,
    pins: Vec<(u64, u64, u32)>,
}

thread_local! {
    static RECORD: Record = Record::new().expect("a record");
}

pub(crate) fn run(input: Input) {
    RECORD.with(|record| {
        rustix::io::pwrite(record.as_fd(), &[0; 4096], 0).expect("an empty record");
        replay(record, &input.steps);
    });
    if let Ok(left) = decode(&input.text) {
        go_on(&left);
    }
    go_on(&left(&input.device));
}

fn replay(record: &Record, steps: &[Step]) {
    let (mut text, mut message) = (None, None);
    for step in steps.iter().take(16) {
        match step {
            Step::Write(bytes) => {
                assert_eq!(record.write(bytes).is_ok(), !bytes.is_empty());
                if !bytes.is_empty() {
                    text = Some(bytes.clone());
                }
            }
            Step::Message(bytes) => {
                record.set_message(bytes).expect("a message");
                message = Some(bytes.clone()).filter(|bytes| !bytes.is_empty());
            }
            Step::ClearMessage => {
                record.clear_message().expect("no message");
                message = None;
            }
            Step::Killed(bytes) => record.write_in_part(bytes),
            Step::Damage(at, bytes) => {
                let at = u64::from(at % 16);
                let bytes = &bytes[..bytes.len().min(16)];
                rustix::io::pwrite(record.as_fd(), bytes, at).expect("damage");
                // Whatever they say, they end and take no more memory than a record has.
                let most = 1 << 20;
                assert!(record.read().ok().flatten().is_none_or(|text| text.len() <= most));
                assert!(record.message().ok().flatten().is_none_or(|text| text.len() <= most));
                return;
            }
        }
        assert_eq!(record.read().expect("a text"), text, "another text than was written");
        assert_eq!(record.message().expect("a message"), message);
    }
}

fn left(device: &Device) -> Left {
    let balloon = Balloon::new(DeviceOptions::default(), Arc::default()).save();
    let pins = device.pins.iter().take(40).map(|(start, len, count)| SavedPin {
        start: *start,
        len: *len,
        count: *count,
    });
    let balloon = SavedBalloon {
        acked_features: device.features.map(u64::from),
        num_pages: device.pages,
        actual: device.actual,
        poison_val: device.poison,
        ..balloon
    };
    let snapshot = Snapshot {
        balloon,
        forced: device.forced,
        paused: device.paused,
        parked: device.parked,
        pins: pins.collect(),
    };
    Left { journal: device.journal, snapshot }
}

/// Seconds for which this thread was given a processor.
fn busy_seconds() -> i64 {
    clock_gettime(ClockId::ThreadCPUTime).tv_sec
}

/// Writes and reads it, and has a daemon go on from it.
fn go_on(left: &Left) {
    let text = encode(left).expect("a text");
    assert_eq!(decode(&text).as_ref().ok(), Some(left), "another snapshot than was written");
    let state = State::new(DeviceOptions::default(), MemoryOptions::default());
    let begin = busy_seconds();
    let restored = state.restore(&left.snapshot);
    assert!(busy_seconds() <= begin + 1, "a snapshot keeps the daemon busy");
    if restored.is_err() {
        return;
    }
    let (snapshot, holds) = (&left.snapshot, |cause| state.inhibit.holds(cause));
    assert_eq!((holds(Cause::Operator), holds(Cause::Parked)), (snapshot.paused, snapshot.parked));
    assert_eq!(state.balloon.is_target_forced(), snapshot.forced);
    let saved = state.balloon.save();
    assert_eq!(
        (saved.acked_features, saved.num_pages, saved.actual, saved.poison_val),
        (
            snapshot.balloon.acked_features,
            snapshot.balloon.num_pages,
            snapshot.balloon.actual,
            snapshot.balloon.poison_val
        )
    );
    // The same range may be there twice.
    let pinned = |start, len| {
        let same = snapshot.pins.iter().filter(|pin| (pin.start, pin.len) == (start, len));
        same.map(|pin| u64::from(pin.count)).sum::<u64>()
    };
    for pin in &snapshot.pins {
        let found = state
            .inhibit
            .pins()
            .into_iter()
            .find(|found| (found.range.start(), found.range.len()) == (pin.start, pin.len));
        let count = found.map_or(0, |found| u64::from(found.count));
        assert_eq!(count, pinned(pin.start, pin.len), "a pin is held as often as it was");
    }
}
