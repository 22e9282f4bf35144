// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state on its way to another daemon: any bytes as a state, any state as bytes, and a device
//! that goes on from it.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;

use crate::device::{Balloon, DeviceOptions, SavedBalloon};
use crate::vhost_user::device_state::{decode, encode};

/// A state, as text or by its fields.
#[derive(Arbitrary, Debug)]
pub(crate) enum Input {
    Text { options: u8, bytes: Vec<u8> },
    Fields { options: u8, fields: Fields },
    Edited { fields: Fields, edits: Vec<(u16, u8)>, cut: Option<u16> },
}

#[derive(Arbitrary, Debug)]
pub(crate) struct Fields {
    acked_features: Option<u64>,
    /// Among those that a device offers.
    known_features: bool,
    num_pages: u32,
    actual: Option<u32>,
    free_page_hint_cmd_id: u32,
    next_hint_cmd_id: u32,
    poison_val: Option<u32>,
    interval: Interval,
}

#[derive(Arbitrary, Debug)]
enum Interval {
    Never,
    Seconds(u16),
    Any(u64, u32),
}

impl From<&Fields> for SavedBalloon {
    fn from(fields: &Fields) -> Self {
        let mask = if fields.known_features { 0x8_3100_00ff_u64 } else { u64::MAX };
        Self {
            acked_features: fields.acked_features.map(|features| features & mask),
            num_pages: fields.num_pages,
            actual: fields.actual,
            free_page_hint_cmd_id: fields.free_page_hint_cmd_id,
            next_hint_cmd_id: fields.next_hint_cmd_id,
            poison_val: fields.poison_val,
            statistics_interval: match fields.interval {
                Interval::Never => Duration::ZERO,
                Interval::Seconds(seconds) => Duration::from_secs(seconds.into()),
                Interval::Any(seconds, nanos) => Duration::new(seconds, nanos % 1_000_000_000),
            },
        }
    }
}

fn options(bits: u8) -> DeviceOptions {
    let has = |bit: u8| bits >> bit & 1 == 1;
    DeviceOptions {
        statistics: has(0),
        free_page_hints: has(1),
        deflate_on_oom: has(2),
        must_tell_host: has(3),
        reporting: has(4),
        init_reported: has(5),
        init_on_inflate: has(6),
        ..DeviceOptions::default()
    }
}

pub(crate) fn run(input: Input) {
    match input {
        Input::Text { options: bits, bytes } => {
            if let Ok(saved) = decode(&bytes) {
                go_on(options(bits), saved);
            }
        }
        Input::Fields { options: bits, fields } => go_on(options(bits), (&fields).into()),
        Input::Edited { fields, edits, cut } => {
            let mut text = encode(&(&fields).into()).expect("a state as text");
            for (at, byte) in edits {
                let len = text.len();
                text[usize::from(at) % len] = byte;
            }
            text.truncate(cut.map_or(usize::MAX, usize::from));
            if let Ok(saved) = decode(&text) {
                go_on(options(0xff), saved);
            }
        }
    }
}

/// Has a device go on from a state, and asks it for the same.
fn go_on(options: DeviceOptions, saved: SavedBalloon) {
    let text = encode(&saved).expect("a state as text");
    assert_eq!(decode(&text).expect("what was written"), saved, "another state than was written");

    let balloon = Balloon::new(options, Arc::default());
    let before = balloon.save();
    let offered = balloon.offered();
    let missing = saved.acked_features.unwrap_or(0) & 0xff_ffff & !offered;
    let restored = balloon.restore(saved);
    if missing != 0 {
        assert!(restored.is_err(), "goes on without {missing:#x}, which its driver has acked");
    }
    if restored.is_err() {
        assert_eq!(balloon.save(), before, "a state that is refused has changed the device");
        return;
    }
    let after = balloon.save();
    // A round of hints that was in progress there is over.
    let ended = u32::from(saved.free_page_hint_cmd_id != 0);
    let interval = options.statistics.then_some(saved.statistics_interval);
    let expected = SavedBalloon {
        free_page_hint_cmd_id: ended,
        next_hint_cmd_id: saved.next_hint_cmd_id.max(2),
        statistics_interval: interval.unwrap_or(before.statistics_interval),
        ..saved
    };
    assert_eq!(after, expected, "another device than was saved");
    let due = saved.actual.is_some_and(|actual| actual > saved.num_pages);
    assert_eq!(
        balloon.take_config_changed(),
        due || ended != saved.free_page_hint_cmd_id,
        "the driver is told of a change, or is not"
    );
}
