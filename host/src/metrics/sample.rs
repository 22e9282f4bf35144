// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One line of a daemon's page, taken apart and put together again with the VM's name.
//!
//! Nothing of a line is passed on that was not understood: a daemon that lies cannot write lines that
//! another one seems to have written, nor any that a scraper would stumble over.

use std::borrow::Cow;
use std::fmt::Write;

/// The label that names the VM.
pub(super) const VM: &str = "vm";

/// A sample without the label [`VM`]. Values of labels are as they came, with their backslashes.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    pub(super) labels: Vec<(&'a str, &'a str)>,
    /// The VM that the daemon says it serves, as it came.
    pub(super) vm: Option<&'a str>,
    pub(super) value: &'a str,
}

impl<'a> Sample<'a> {
    /// Reads `name{label="value",...} number`; none if it is anything else.
    pub(super) fn read(line: &'a str) -> Option<Self> {
        let end = line.find(|end: char| !is_name(end))?;
        let (name, mut rest) = line.split_at(end);
        if !is_begin(name) {
            return None;
        }
        let (mut labels, mut vm) = (Vec::new(), None);
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, value, after) = label(rest)?;
                if labels.iter().any(|(other, _)| *other == label) || (vm.is_some() && label == VM)
                {
                    return None;
                }
                match label {
                    VM => vm = Some(value),
                    _ => labels.push((label, value)),
                }
                // A comma stands between two, and may stand behind the last.
                rest =
                    after.strip_prefix(',').or_else(|| after.starts_with('}').then_some(after))?;
            }
            rest = &rest[1..];
        }
        let value = rest.strip_prefix(' ')?;
        is_number(value).then_some(Self { name, labels, vm, value })
    }

    /// The label with this name, as it came.
    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| *value)
    }

    /// Everything but the value, with the VM's name: two samples that have the same are one.
    pub(super) fn key(&self, vm: &str) -> String {
        let mut text = format!("{}{{{VM}=\"{}\"", self.name, escaped(vm));
        for (label, value) in &self.labels {
            // Writing to memory does not fail.
            let _ = write!(text, ",{label}=\"{value}\"");
        }
        text.push('}');
        text
    }
}

/// The value of a label as a text.
pub(super) fn unescaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(next) = chars.next() {
        text.push(match next {
            '\\' => match chars.next() {
                Some('n') => '\n',
                other => other.unwrap_or_default(),
            },
            other => other,
        });
    }
    text
}

/// A text as the value of a label.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n"))
}

/// The name, the value and the rest behind both of `label="value"...`.
fn label(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once("=\"")?;
    if !is_begin(name) || !name.chars().all(|each| is_name(each) && each != ':') {
        return None;
    }
    let mut chars = rest.char_indices();
    while let Some((at, next)) = chars.next() {
        match next {
            '"' => return Some((name, &rest[..at], &rest[at + 1..])),
            '\\' if !matches!(chars.next()?.1, '\\' | '"' | 'n') => return None,
            next if next.is_control() => return None,
            _ => {}
        }
    }
    None
}

/// Whether a name may begin so.
fn is_begin(name: &str) -> bool {
    name.starts_with(|first: char| is_name(first) && !first.is_ascii_digit())
}

/// Whether it may be in the name of a metric.
pub(super) fn is_name(each: char) -> bool {
    each.is_ascii_alphanumeric() || each == '_' || each == ':'
}

fn is_number(text: &str) -> bool {
    // Rust reads more than OpenMetrics: words such as `infinity`.
    let plain =
        |each: u8| each.is_ascii_digit() || matches!(each, b'+' | b'-' | b'.' | b'e' | b'E');
    matches!(text, "NaN" | "+Inf" | "-Inf")
        || text.bytes().all(plain) && text.parse::<f64>().is_ok_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_is_read_and_named() {
        let line = r#"balloon_chain_seconds_bucket{vm="a\"b",le="+Inf",x="c\\"} 12"#;
        let sample = Sample::read(line).unwrap();
        assert_eq!(sample.vm.map(unescaped).unwrap(), "a\"b");
        assert_eq!((sample.label("le"), sample.value), (Some("+Inf"), "12"));
        let key = r#"balloon_chain_seconds_bucket{vm="n\\\"\n",le="+Inf",x="c\\"}"#;
        assert_eq!(sample.key("n\\\"\n"), key);
        let bare = Sample::read("a 1.5e3").unwrap();
        assert_eq!((bare.key("x"), bare.value), ("a{vm=\"x\"}".to_owned(), "1.5e3"));
        assert!(Sample::read("a{} 1").is_some() && Sample::read("a{b=\"\",} NaN").is_some());
    }

    #[test]
    fn anything_else_is_no_sample() {
        for line in [
            "",
            "a",
            "a ",
            "1a 1",
            "a  1",
            "a 1 ",
            "a 1 2",
            "a inf",
            "a nan",
            "a 1e999",
            "a --1",
            "a{ 1",
            "a{b} 1",
            "a{b=\"c} 1",
            "a{b=\"c\\x\"} 1",
            "a{b=\"c\\",
            "a{b=\"c\"d=\"e\"} 1",
            "a{,} 1",
            "a{b:c=\"\"} 1",
            "a{b=\"\",b=\"\"} 1",
            "a{vm=\"x\",vm=\"y\"} 1",
            "a{b=\"\n\"} 1",
            "a{b=\"\"}1",
            "a 1 # {trace_id=\"x\"} 1",
            "\u{e4} 1",
        ] {
            assert_eq!(Sample::read(line), None, "{line:?}");
        }
    }
}
