// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Text in the language of `man`.

use super::help_text::Block;

/// A page as it grows.
pub(super) struct Roff(String);

impl Roff {
    /// Starts a page of section 1 with its title, the date and version of the program.
    pub(super) fn new(title: &str, date: &str, version: &str) -> Self {
        let mut page = Self(String::new());
        // Without a name of the manual, which would stand between two titles.
        page.request(&format!(r#"TH {} 1 {date} "{}" "\&""#, escaped(title), escaped(version)));
        // No hyphens within words, and no wide gaps between them.
        page.request("nh");
        page.request("ad l");
        page
    }

    /// Returns the page.
    pub(super) fn text(self) -> String {
        self.0
    }

    pub(super) fn section(&mut self, heading: &str) {
        self.request(&format!("SH {}", escaped(&heading.to_uppercase())));
    }

    pub(super) fn name(&mut self, name: &str, about: &str) {
        self.line(&format!("{} \\- {}", escaped(name), escaped(about)));
    }

    /// One form of the command, with all lines but the first indented.
    pub(super) fn synopsis(&mut self, form: &str) {
        self.request("HP 4");
        self.line(form);
    }

    /// Paragraphs of plain text, with an empty line between two.
    pub(super) fn paragraphs(&mut self, text: &str) {
        self.separated(text, "PP");
    }

    /// The head of an entry.
    pub(super) fn entry(&mut self, term: &str) {
        self.request("TP");
        self.line(term);
    }

    /// Paragraphs of plain text in an entry.
    pub(super) fn in_entry(&mut self, text: &str) {
        self.separated(text, "IP");
    }

    /// Entries in an entry.
    pub(super) fn entries(&mut self, entries: &[(&str, String)]) {
        self.request("RS");
        for (term, text) in entries {
            self.entry(&bold(term));
            self.line(&marked(text));
        }
        self.request("RE");
    }

    /// Names of other pages.
    pub(super) fn references(&mut self, names: &[&str]) {
        let names: Vec<_> = names.iter().map(|name| reference(name)).collect();
        self.line(&names.join(",\n"));
    }

    /// The contents of a section.
    pub(super) fn blocks(&mut self, blocks: &[Block]) {
        for (index, block) in blocks.iter().enumerate() {
            // The heading has its own space.
            if index > 0 && !matches!(block, Block::Entry(..)) {
                self.request("PP");
            }
            match block {
                Block::Prose(lines) => self.line(&marked(&lines.join(" "))),
                Block::Entry(term, text) => {
                    self.entry(&bold(term));
                    self.line(&marked(text));
                }
                Block::Literal(lines) => {
                    self.request("EX");
                    lines.iter().for_each(|line| self.line(&escaped(line)));
                    self.request("EE");
                }
            }
        }
    }

    fn separated(&mut self, text: &str, between: &str) {
        for (index, paragraph) in text.split("\n\n").enumerate() {
            if index > 0 {
                self.request(between);
            }
            self.line(&marked(paragraph));
        }
    }

    fn request(&mut self, request: &str) {
        self.0 += &format!(".{request}\n");
    }

    fn line(&mut self, text: &str) {
        for line in text.lines() {
            // It would be a request.
            if line.starts_with(['.', '\'']) {
                self.0 += "\\&";
            }
            self.0 += line;
            self.0.push('\n');
        }
    }
}

pub(super) fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escaped(text))
}

pub(super) fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escaped(text))
}

/// The name of another page, with its section.
pub(super) fn reference(name: &str) -> String {
    format!("{}(1)", bold(name))
}

/// Writes hyphens, quotes and backslashes so that they can be copied to a shell.
pub(super) fn escaped(text: &str) -> String {
    let escape = |character: char| match character {
        '\\' => "\\e".to_owned(),
        '-' => "\\-".to_owned(),
        '\'' => "\\(aq".to_owned(),
        '`' => "\\(ga".to_owned(),
        '^' => "\\(ha".to_owned(),
        '~' => "\\(ti".to_owned(),
        other => other.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Prose with what stands in backticks, and options, in bold.
pub(super) fn marked(text: &str) -> String {
    let mut marked = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index % 2 == 1 {
            marked += &bold(part);
            continue;
        }
        for word in part.split_inclusive(char::is_whitespace) {
            let is_option = |character: char| character.is_ascii_lowercase() || character == '-';
            let start = word.len() - word.trim_start_matches('(').len();
            let option = &word[start..];
            let end = option.find(|character| !is_option(character)).unwrap_or(option.len());
            match &option[..end] {
                name if name.len() > 2 && name.starts_with("--") => {
                    marked += &escaped(&word[..start]);
                    marked += &bold(name);
                    marked += &escaped(&option[end..]);
                }
                _ => marked += &escaped(word),
            }
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_options_in_prose_are_bold() {
        for (text, expected) in [
            ("run `ctl status`.", "run \\fBctl status\\fR."),
            ("set (--fd, 3) - or not", "set (\\fB\\-\\-fd\\fR, 3) \\- or not"),
            ("that of --socket-path", "that of \\fB\\-\\-socket\\-path\\fR"),
            ("the guest's C:\\", "the guest\\(aqs C:\\e"),
        ] {
            assert_eq!(marked(text), expected);
        }
    }

    #[test]
    fn text_is_never_a_request() {
        let mut page = Roff::new("a", "2026-01-01", "a 1");
        page.paragraphs(".SH A\n'br\nb");
        assert!(page.text().ends_with("\\&.SH A\n\\(aqbr\nb\n"));
    }
}
