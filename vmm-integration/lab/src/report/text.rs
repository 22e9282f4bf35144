// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pieces of text that all parts of the page share: verdicts, commands, ids, sizes, tables.

use maud::{Markup, PreEscaped, html};

use crate::size::Size;
use crate::store::VerdictKind;

/// The style of tables of the class `stack`, which are too wide for their columns: a card for each
/// row, with the name of its case beside each value.
const STACK: &str = include_str!("stack.css");
/// Classes of tables: the most columns beside the first, and the width in rem below which the table
/// is stacked. A table with more columns is always stacked.
const WIDTHS: [(usize, &str, u32); 4] =
    [(2, "n2", 30), (4, "n4", 42), (7, "n7", 56), (11, "n11", 76)];

/// A verdict as words.
pub fn verdict_name(kind: VerdictKind) -> &'static str {
    match kind {
        VerdictKind::Survived => "survived",
        VerdictKind::AsDocumented => "as documented",
        VerdictKind::Lost => "LOST",
        VerdictKind::Shown => "shown",
        VerdictKind::NotShown => "not shown",
        VerdictKind::NotTestable => "not testable here",
    }
}

/// A verdict or a failure as a colored word.
pub(super) fn badge(name: &str) -> Markup {
    html! { span class={ "badge b-" (slug(&name.to_lowercase())) } { (name) } }
}

/// A command that repeats a result; a long one is folded.
pub(super) fn again(command: &str) -> Markup {
    html! {
        @if command.len() <= 160 {
            p.again { "Repeat: " (code(command)) }
        } @else {
            details.again { summary { "Repeat with one command" } (code(command)) }
        }
    }
}

/// A command, with line breaks between its words only.
pub(super) fn code(command: &str) -> Markup {
    html! {
        code {
            @for (nr, word) in command.split(' ').enumerate() {
                @if nr > 0 { " " }
                span { (word) }
            }
        }
    }
}

/// A text, with the parts between backticks as code.
pub(super) fn prose(text: &str) -> Markup {
    let parts: Vec<&str> = text.split('`').collect();
    html! {
        @if parts.len().is_multiple_of(2) {
            (text)
        } @else {
            @for (nr, part) in parts.iter().enumerate() {
                @if nr % 2 == 0 { (part) } @else { code { (part) } }
            }
        }
    }
}

/// A size with its unit.
pub(super) fn size(bytes: u64) -> String {
    let text = Size(bytes).to_string();
    match text.strip_suffix(|c: char| c.is_ascii_alphabetic()) {
        Some(digits) => format!("{digits} {}iB", &text[digits.len()..]),
        None => format!("{text} B"),
    }
}

/// The style that stacks the tables of each class.
pub(super) fn table_style() -> String {
    let narrow = |(_, class, rem): (usize, &str, u32)| {
        let rules = STACK.replace(".stack", &format!(".{class}"));
        format!("@container (max-width: {rem}rem) {{\n{rules}}}\n")
    };
    WIDTHS.into_iter().map(narrow).collect::<String>() + STACK
}

/// The class of a table with this many columns beside the first.
pub(super) fn class(columns: usize) -> &'static str {
    let found = WIDTHS.into_iter().find(|(most, ..)| columns <= *most);
    found.map_or("stack", |(_, class, _)| class)
}

/// A name as part of an id.
pub(super) fn slug(name: &str) -> String {
    let part = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
    name.chars().map(part).collect()
}

/// A table: caption, heads of its columns, and its body.
pub(super) fn table(class: &str, caption: &str, heads: &[&str], rows: Markup) -> Markup {
    html! {
        table role="table" class=(class) {
            caption { (caption) }
            thead role="rowgroup" {
                tr role="row" { @for head in heads { th role="columnheader" scope="col" { (head) } } }
            }
            tbody role="rowgroup" { (PreEscaped(rows.into_string())) }
        }
    }
}
