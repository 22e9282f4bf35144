// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a program wrote to its terminal, and when.

use std::num::NonZeroU16;
use std::time::Duration;

use serde_json::json;

/// A part of what it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Since the start.
    pub at: Duration,
    /// As it was written.
    pub bytes: Vec<u8>,
}

/// All that it wrote to a terminal of this size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
    /// In their order.
    pub events: Vec<Event>,
}

impl Recording {
    /// As [asciicast v2](https://docs.asciinema.org/manual/asciicast/v2/): JSON, an event a line.
    pub fn asciicast(&self, title: &str) -> String {
        let mut text = json!({
            "version": 2, "width": self.width, "height": self.height, "title": title,
            "env": {"TERM": "xterm-256color"},
        })
        .to_string();
        // A character may be cut at the end of a part.
        let mut rest = Vec::new();
        for Event { at, bytes } in &self.events {
            rest.extend_from_slice(bytes);
            let end = whole(&rest);
            let part: Vec<u8> = rest.drain(..end).collect();
            let seconds = at.as_secs_f64();
            text += &format!("\n{}", json!([seconds, "o", String::from_utf8_lossy(&part)]));
        }
        text + "\n"
    }

    /// All bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.events.iter().flat_map(|event| event.bytes.clone()).collect()
    }

    /// The screens that stayed for a while, each with the time since when. Those that stayed for less than
    /// `least` are those of a drawing in progress.
    pub fn screens(&self, least: Duration) -> Vec<(Duration, vt100::Screen)> {
        let mut parser = parser(self.width, self.height);
        let mut screens: Vec<(Duration, vt100::Screen)> = Vec::new();
        for (index, Event { at, bytes }) in self.events.iter().enumerate() {
            parser.process(bytes);
            let next = self.events.get(index + 1).map(|next| next.at);
            if next.is_some_and(|next| next.saturating_sub(*at) < least) {
                continue;
            }
            let screen = parser.screen().clone();
            let differs = |last: &(Duration, vt100::Screen)| {
                last.1.contents_formatted() != screen.contents_formatted()
            };
            if screens.last().is_none_or(differs) {
                screens.push((*at, screen));
            }
        }
        screens
    }
}

/// What keeps the screen of a terminal of this size.
pub(crate) fn parser(width: u16, height: u16) -> vt100::Parser {
    vt100::Parser::new(at_least_one(height), at_least_one(width), 0)
}

pub(crate) fn at_least_one(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN)
}

/// Where the last whole character ends.
fn whole(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // What is no text at all does not become any.
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(milliseconds: u64, bytes: &[u8]) -> Event {
        Event { at: Duration::from_millis(milliseconds), bytes: bytes.to_vec() }
    }

    #[test]
    fn characters_that_were_cut_are_whole_in_asciicast() {
        let events = vec![event(0, b"a\xe2\x96"), event(500, b"\x88\x1b[1m")];
        let text = Recording { width: 9, height: 2, events }.asciicast("x");
        let lines: Vec<_> = text.lines().collect();
        let header: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!((&header["version"], &header["height"]), (&json!(2), &json!(2)));
        let events = ["[0.0,\"o\",\"a\"]", "[0.5,\"o\",\"█\\u001b[1m\"]"];
        assert_eq!(lines[1..], events);
    }

    #[test]
    fn screens_are_those_that_stayed() {
        let events =
            vec![event(0, b"one"), event(10, b"\x1b[2J"), event(11, b"\x1b[Htwo"), event(900, b"")];
        let recording = Recording { width: 9, height: 2, events };
        let screens = recording.screens(Duration::from_millis(5));
        let seen: Vec<_> = screens.iter().map(|(_, screen)| screen.contents()).collect();
        assert_eq!(seen, ["one", "two"]);
    }
}
