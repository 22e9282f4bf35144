// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What follows the options in `--help`, taken apart.
//!
//! A line that is not indented is a heading and ends with a colon. Below it a line `TERM  TEXT`, with two spaces or
//! more between, is an entry of a list. A line that is indented by four or more is printed as it is. The rest is
//! prose.

use anyhow::{Context, Result, ensure};

/// What has one heading.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    pub(super) heading: &'a str,
    pub(super) blocks: Vec<Block<'a>>,
}

/// A part of a section.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block<'a> {
    /// A paragraph.
    Prose(Vec<&'a str>),
    /// An entry of a list: the term, and what it means.
    Entry(&'a str, &'a str),
    /// Lines as they are, such as commands.
    Literal(Vec<&'a str>),
}

/// Takes `text` apart.
///
/// # Errors
/// If a line that is not indented is no heading, or one is before the first heading.
pub(super) fn sections(text: &str) -> Result<Vec<Section<'_>>> {
    let mut sections: Vec<Section> = Vec::new();
    let mut gap = true;
    for line in text.lines() {
        if line.starts_with(|first: char| !first.is_whitespace()) {
            let heading = line.strip_suffix(':');
            let heading = heading.with_context(|| format!("not a heading: {line:?}"))?;
            sections.push(Section { heading, blocks: Vec::new() });
            gap = true;
        } else if line.is_empty() {
            gap = true;
        } else {
            ensure!(!sections.is_empty(), "before the first heading: {line:?}");
            let last = sections.last_mut().map(|section| &mut section.blocks);
            last.into_iter().for_each(|blocks| add(blocks, line, gap));
            gap = false;
        }
    }
    Ok(sections)
}

/// Adds a line, to the last block if it goes on.
fn add<'a>(blocks: &mut Vec<Block<'a>>, line: &'a str, gap: bool) {
    let literal = line.strip_prefix("    ");
    let text = line.trim_start();
    if let Some((term, meaning)) = text.split_once("  ") {
        let meaning = meaning.trim_start();
        // In the help a shell takes it for a comment.
        return blocks.push(Block::Entry(term, meaning.strip_prefix("# ").unwrap_or(meaning)));
    }
    match (blocks.last_mut(), literal) {
        (Some(Block::Literal(lines)), Some(line)) if !gap => lines.push(line),
        (Some(Block::Prose(lines)), None) if !gap => lines.push(text),
        (_, Some(line)) => blocks.push(Block::Literal(vec![line])),
        (_, None) => blocks.push(Block::Prose(vec![text])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_taken_apart_at_its_headings() {
        let text = "One:\n  Some prose\n  goes on.\n\n    run \\\n      --it\n\nTwo:\n  0  done\n  a b   # all\n";
        let expected = [
            Section {
                heading: "One",
                blocks: vec![
                    Block::Prose(vec!["Some prose", "goes on."]),
                    Block::Literal(vec!["run \\", "  --it"]),
                ],
            },
            Section {
                heading: "Two",
                blocks: vec![Block::Entry("0", "done"), Block::Entry("a b", "all")],
            },
        ];
        assert_eq!(sections(text).unwrap(), expected);
    }

    #[test]
    fn text_without_a_heading_is_refused() {
        for bad in ["Some prose.\n", "  0  done\n"] {
            assert!(sections(bad).is_err(), "{bad:?}");
        }
    }
}
