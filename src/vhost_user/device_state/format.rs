// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state as a line of JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use super::error::VERSION;
use super::error::{FORMAT, StateError, unreadable};
use crate::device::SavedBalloon;

/// What every version has in common.
#[derive(Serialize, Deserialize)]
struct Envelope {
    format: String,
    version: u32,
    balloon: Value,
}

/// The state as it travels.
///
/// # Errors
/// [`StateError::Unreadable`] if it cannot be put in words.
pub(crate) fn encode(balloon: &SavedBalloon) -> Result<Vec<u8>, StateError> {
    let balloon = serde_json::to_value(balloon).map_err(unreadable)?;
    let envelope = Envelope { format: FORMAT.to_owned(), version: VERSION, balloon };
    let mut bytes = serde_json::to_vec(&envelope).map_err(unreadable)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`StateError`]
pub(crate) fn decode(bytes: &[u8]) -> Result<SavedBalloon, StateError> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(unreadable)?;
    if envelope.format != FORMAT {
        return Err(StateError::Format);
    }
    if envelope.version != VERSION {
        return Err(StateError::Version(envelope.version));
    }
    serde_json::from_value(envelope.balloon).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Balloon, DeviceOptions};
    use std::sync::Arc;

    fn saved() -> SavedBalloon {
        Balloon::new(DeviceOptions::default(), Arc::default()).save()
    }

    #[test]
    fn what_was_written_can_be_read() {
        let bytes = encode(&saved()).unwrap();
        assert_eq!(encode(&decode(&bytes).unwrap()).unwrap(), bytes);
    }

    #[test]
    fn what_this_daemon_does_not_know_is_refused_by_name() {
        let text = String::from_utf8(encode(&saved()).unwrap()).unwrap();
        let told = |text: &str| decode(text.as_bytes()).unwrap_err().to_string();
        let newer = told(&text.replace("\"version\":1", "\"version\":7"));
        assert!(newer.contains("version 7") && newer.contains("version 1"), "{newer}");
        let other = told(&text.replace(FORMAT, "virtiofsd"));
        assert!(!other.contains("virtiofsd") && other.contains(FORMAT), "{other}");
        for damaged in ["", "{", "[]", "\u{0}", &text[..text.len() / 2], &"[".repeat(60_000)] {
            assert!(matches!(decode(damaged.as_bytes()), Err(StateError::Unreadable(_))));
        }
    }

    /// What is quoted of a state fills the log, or worse.
    #[test]
    fn what_a_state_holds_is_not_repeated() {
        let text = String::from_utf8(encode(&saved()).unwrap()).unwrap();
        let secret = "secret".repeat(10_000);
        for (from, to) in [
            ("\"format\":", format!("\"{secret}\":1,\"format\":")),
            ("\"version\":1", format!("\"version\":\"{secret}\"")),
            (FORMAT, secret.clone()),
            ("\"balloon\":{", format!("\"balloon\":{{\"{secret}\":1,")),
            ("\"balloon\":{", format!("\"balloon\":\"{secret}\",\"x\":{{")),
        ] {
            let Err(error) = decode(text.replacen(from, &to, 1).as_bytes()) else { continue };
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let said = format!("{error}: {}", source.unwrap_or_default());
            assert!(said.len() < 200 && !said.contains("secret"), "{said}");
        }
    }
}
