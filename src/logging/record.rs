// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One line of the log.

use std::fmt::{self, Write};

/// The longest record in bytes, its line feed included: what a pipe takes in one piece (`PIPE_BUF`),
/// so that other programs that write to the same pipe do not break it up.
pub(crate) const MOST_BYTES: usize = 4096;

/// What the mark of a record that was cut takes at most.
const MARK_BYTES: usize = " [cut, 18446744073709551615 bytes]".len();

/// A record as it is written down, bounded and on one line whatever is written into it.
#[derive(Debug, Default)]
pub(crate) struct Record {
    text: String,
    /// Bytes left out of `text` once it was full.
    cut: usize,
}

impl Record {
    /// The line, with its line feed, and with a mark if it was cut.
    pub(crate) fn into_line(mut self) -> String {
        if self.cut > 0 {
            let room = MOST_BYTES - 1 - MARK_BYTES;
            let end = (0..=room).rev().find(|end| self.text.is_char_boundary(*end)).unwrap_or(0);
            let cut = self.cut + (self.text.len() - end);
            self.text.truncate(end);
            self.text.push_str(&format!(" [cut, {cut} bytes]"));
        }
        self.text.push('\n');
        self.text
    }

    fn push(&mut self, piece: &str) {
        if self.cut == 0 && self.text.len() + piece.len() < MOST_BYTES {
            self.text.push_str(piece);
        } else {
            self.cut += piece.len();
        }
    }
}

impl Write for Record {
    /// Never fails.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut utf8 = [0; 4];
        for char in text.chars() {
            if breaks_lines(char) {
                for escaped in char.escape_default() {
                    self.push(escaped.encode_utf8(&mut utf8));
                }
            } else {
                self.push(char.encode_utf8(&mut utf8));
            }
        }
        Ok(())
    }
}

/// Whether a character ends a line, moves the cursor or turns the direction of the text.
fn breaks_lines(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        let mut record = Record::default();
        record.write_str(text).unwrap();
        record.into_line()
    }

    #[test]
    fn control_characters_are_escaped_on_one_line() {
        let mut record = Record::default();
        record.write_str("unknown field a\nb").unwrap();
        assert_eq!(record.into_line(), "unknown field a\\nb\n");
    }

    #[test]
    fn foreign_text_stays_on_one_line() {
        assert_eq!(line("a\nb\r\t\u{1b}[31m\u{85}\u{2028}\u{202e}é\\\"'"), {
            "a\\nb\\r\\t\\u{1b}[31m\\u{85}\\u{2028}\\u{202e}é\\\"'\n"
        });
    }

    #[test]
    fn a_record_that_fits_is_whole() {
        let text = "x".repeat(MOST_BYTES - 1);
        assert_eq!(line(&text), format!("{text}\n"));
    }

    #[test]
    fn a_longer_one_is_cut_and_says_so() {
        for (char, count) in [("x", MOST_BYTES), ("x", 60_000), ("é", 30_000), ("\n", 30_000)] {
            let text = char.repeat(count);
            let line = line(&text);
            assert!(line.len() <= MOST_BYTES, "{}", line.len());
            let (kept, mark) = line.split_once(" [cut, ").unwrap();
            let cut: usize = mark.strip_suffix(" bytes]\n").unwrap().parse().unwrap();
            let escaped = if char == "\n" { 2 * count } else { text.len() };
            assert_eq!(kept.len() + cut, escaped);
        }
    }
}
