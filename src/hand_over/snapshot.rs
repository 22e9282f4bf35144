// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state as a line of JSON, with what a migrating guest does not take along: it is the
//! same host, the same operator and the same VMM.
//!
//! ```json
//! {"format":"vhost-device-balloon hand-over","version":1,"journal":3,"balloon":{…},"paused":false,
//!  "parked":false,"pins":[{"start":4096,"len":8192,"count":1}]}
//! ```

use serde::{Deserialize, Serialize};

use super::error::{HandOverError, VERSION};
use crate::device::SavedBalloon;

/// Has a program say whether it could go on from the record that is its standard input.
pub(crate) const CHECK: &str = "--check-hand-over";

const FORMAT: &str = "vhost-device-balloon hand-over";

/// What every version has in common.
#[derive(Deserialize)]
struct Envelope {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Whole {
    format: String,
    version: u32,
    #[serde(flatten)]
    left: Left,
}

/// What is in the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    /// Number of the journal that counts; none while no frontend is connected.
    pub(super) journal: Option<u64>,
    #[serde(flatten)]
    pub(super) snapshot: Snapshot,
}

/// The device and what the operator has made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// The device.
    pub balloon: SavedBalloon,
    /// Whether the operator wants the target, whatever it leaves to the guest.
    pub forced: bool,
    /// Whether the operator has paused discarding.
    pub paused: bool,
    /// Whether the operator has parked the guest.
    pub parked: bool,
    /// What the operator has pinned.
    pub pins: Vec<SavedPin>,
}

/// A pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedPin {
    /// Guest physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// How often it was pinned.
    pub count: u32,
}

pub(super) fn encode(left: &Left) -> Result<Vec<u8>, HandOverError> {
    let whole = Whole { format: FORMAT.to_owned(), version: VERSION, left: left.clone() };
    serde_json::to_vec(&whole).map_err(HandOverError::Unreadable)
}

pub(super) fn decode(text: &[u8]) -> Result<Left, HandOverError> {
    let envelope: Envelope = serde_json::from_slice(text).map_err(HandOverError::Unreadable)?;
    if envelope.format != FORMAT {
        return Err(HandOverError::Format);
    }
    if envelope.version != VERSION {
        return Err(HandOverError::Version(envelope.version));
    }
    let whole: Whole = serde_json::from_slice(text).map_err(HandOverError::Unreadable)?;
    Ok(whole.left)
}

/// Whether this daemon could go on from the record with this descriptor.
///
/// # Errors
/// Why not.
pub(crate) fn check(record: std::fs::File) -> Result<(), HandOverError> {
    match super::record::Record::from(record).read()? {
        Some(text) => decode(&text).map(drop),
        None => Err(HandOverError::Missing("the device's state")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Balloon, DeviceOptions};
    use std::sync::Arc;

    fn left() -> Left {
        let balloon = Balloon::new(DeviceOptions::default(), Arc::default()).save();
        let pins = vec![SavedPin { start: 4096, len: 8192, count: 2 }];
        let snapshot = Snapshot { balloon, forced: true, paused: true, parked: true, pins };
        Left { journal: Some(3), snapshot }
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(decode(&encode(&left()).unwrap()).unwrap(), left());
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let text = String::from_utf8(encode(&left()).unwrap()).unwrap();
        // Even where nothing else of it is known.
        let newer = format!("{{\"format\":\"{FORMAT}\",\"version\":7}}");
        let told = decode(newer.as_bytes()).unwrap_err().to_string();
        assert!(told.contains("version 7") && told.contains("version 1"), "{told}");
        let other = text.replace(FORMAT, "another");
        assert!(matches!(decode(other.as_bytes()), Err(HandOverError::Format)));
        for damaged in ["", "{", &text[..text.len() / 2]] {
            assert!(matches!(decode(damaged.as_bytes()), Err(HandOverError::Unreadable(_))));
        }
    }
}
