// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pages of all daemons as one: each family once, each sample with its VM's name.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::mem;

use super::histogram::Histogram;
use super::sample::{Sample, is_name, unescaped};

/// Most samples of a daemon; one has some 100.
const MOST_SAMPLES: usize = 2000;

/// Most bytes of a line.
const MOST_LINE_BYTES: usize = 1024;

/// What families of a daemon begin with.
const OURS: [&str; 2] = ["balloon_", "process_"];

/// What no family of a daemon begins with.
const HOSTS: &str = "balloon_host_";

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn read(text: &str) -> Option<Self> {
        match text {
            "counter" => Some(Self::Counter),
            "gauge" => Some(Self::Gauge),
            "histogram" => Some(Self::Histogram),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    /// Whether a family of this kind has such a sample.
    fn has(self, family: &str, sample: &Sample<'_>) -> bool {
        let Some(suffix) = sample.name.strip_prefix(family) else { return false };
        let counts =
            || sample.value.parse().is_ok_and(|value: f64| value.is_finite() && value >= 0.0);
        match self {
            Self::Gauge => suffix.is_empty(),
            Self::Counter => suffix == "_total" && counts(),
            Self::Histogram if suffix == "_bucket" => sample.label("le").is_some() && counts(),
            Self::Histogram => matches!(suffix, "_count" | "_sum") && counts(),
        }
    }
}

/// What a daemon says of a family, in which all must agree. The help may differ from version to version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Described {
    kind: Kind,
    unit: Option<String>,
    /// Names of the labels, without that of the VM and the bounds of buckets.
    labels: Vec<String>,
}

/// The samples of the daemons that say the same of a family.
#[derive(Debug, Default)]
struct Part {
    daemons: usize,
    help: String,
    lines: String,
}

/// The pages so far.
#[derive(Debug, Default)]
pub(super) struct Merged {
    families: BTreeMap<String, BTreeMap<Described, Part>>,
}

impl Merged {
    /// Adds the page of the daemon of `vm`, in OpenMetrics, and returns how many of its lines were
    /// refused.
    pub(super) fn add(&mut self, vm: &str, page: &str) -> usize {
        let mut reader = Reader { vm, ..Reader::default() };
        // What comes behind the end is of no page.
        for line in page.lines().take_while(|line| *line != "# EOF") {
            let taken = match line.strip_prefix("# ") {
                _ if line.len() > MOST_LINE_BYTES => false,
                Some(about) => reader.describe(about),
                None => reader.sample(line),
            };
            reader.refused += usize::from(!taken);
        }
        let (parts, refused) = reader.end();
        for (name, (described, part)) in parts {
            let of =
                self.families.entry(name.to_owned()).or_default().entry(described).or_default();
            of.daemons += part.daemons;
            of.help = part.help;
            of.lines.push_str(&part.lines);
        }
        refused
    }

    /// Writes all families in OpenMetrics, without the end. Where daemons say different things of a
    /// family, it is what most of them say, and has their samples only: one that lies changes nothing
    /// for the others.
    pub(super) fn write(&self, text: &mut String) {
        for (name, parts) in &self.families {
            let most = parts.iter().max_by_key(|(_, part)| part.daemons);
            let Some((Described { kind, unit, .. }, part)) = most else { continue };
            // Writing to memory does not fail.
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", part.help, kind.name());
            if let Some(unit) = unit {
                let _ = writeln!(text, "# UNIT {name} {unit}");
            }
            text.push_str(&part.lines);
        }
    }
}

/// A page, read line by line.
#[derive(Debug, Default)]
struct Reader<'a> {
    vm: &'a str,
    head: Head<'a>,
    /// What the head says, once a sample has come.
    described: Option<Described>,
    lines: String,
    histogram: Histogram,
    /// Every sample but its value.
    seen: BTreeSet<String>,
    parts: BTreeMap<&'a str, (Described, Part)>,
    refused: usize,
}

impl<'a> Reader<'a> {
    /// Takes `HELP name text` and the like.
    fn describe(&mut self, about: &'a str) -> bool {
        let mut words = about.splitn(3, ' ');
        let (Some(word), Some(name)) = (words.next(), words.next()) else { return false };
        if self.described.is_some() || self.head.name != name {
            self.flush();
            self.head.name = name;
        }
        let (head, text) = (&mut self.head, words.next().unwrap_or_default());
        let field = match word {
            "HELP" => &mut head.help,
            "TYPE" => &mut head.kind,
            "UNIT" => &mut head.unit,
            _ => return false,
        };
        field.replace(text).is_none()
    }

    fn sample(&mut self, line: &str) -> bool {
        let Some((kind, unit)) = self.head.described() else { return false };
        let sample = Sample::read(line).filter(|sample| kind.has(self.head.name, sample));
        let Some(sample) = sample.filter(|_| self.seen.len() < MOST_SAMPLES) else { return false };
        let names = sample.labels.iter().map(|(name, _)| *name);
        let labels = names.filter(|name| kind != Kind::Histogram || *name != "le");
        let labels = labels.map(str::to_owned).collect();
        let described = Described { kind, unit: unit.map(str::to_owned), labels };
        if *self.described.get_or_insert_with(|| described.clone()) != described {
            return false;
        }
        if kind == Kind::Histogram {
            self.histogram.take(&sample.name[self.head.name.len()..], &sample);
        }
        let key = sample.key(self.vm);
        let line = format!("{key} {}\n", sample.value);
        let is_new = self.seen.insert(key);
        if is_new {
            self.lines.push_str(&line);
        }
        is_new
    }

    /// Ends a family.
    fn flush(&mut self) {
        let (name, lines) = (self.head.name, mem::take(&mut self.lines));
        let (described, histogram) = (self.described.take(), mem::take(&mut self.histogram));
        let help = self.head.help.unwrap_or_default().replace(['\\', '"'], "");
        self.head = Head::default();
        let Some(described) = described.filter(|_| !lines.is_empty()) else { return };
        let is_whole = described.kind != Kind::Histogram || histogram.is_whole();
        let count = lines.lines().count();
        let part = Part { daemons: 1, help, lines };
        match self.parts.entry(name) {
            Entry::Vacant(vacant) if is_whole => drop(vacant.insert((described, part))),
            // A family is in one place.
            _ => self.refused += count,
        }
    }

    fn end(mut self) -> (BTreeMap<&'a str, (Described, Part)>, usize) {
        self.flush();
        (self.parts, self.refused)
    }
}

/// The lines above the samples of a family.
#[derive(Clone, Copy, Debug, Default)]
struct Head<'a> {
    name: &'a str,
    help: Option<&'a str>,
    kind: Option<&'a str>,
    unit: Option<&'a str>,
}

impl<'a> Head<'a> {
    /// Kind and unit, if it is a family that a daemon may have.
    fn described(&self) -> Option<(Kind, Option<&'a str>)> {
        let name = self.name;
        let is_ours = OURS.iter().any(|prefix| name.starts_with(prefix));
        if !is_ours || name.starts_with(HOSTS) || !name.chars().all(is_name) {
            return None;
        }
        let ends = |unit: &str| name.strip_suffix(unit).is_some_and(|stem| stem.ends_with('_'));
        let is_text = |text: &str| !text.contains(char::is_control);
        if !self.unit.is_none_or(ends) || !self.help.is_none_or(is_text) {
            return None;
        }
        Some((Kind::read(self.kind?)?, self.unit))
    }
}

/// The VM that a page says it is of, from its first sample.
pub(super) fn vm_of(page: &str) -> Option<String> {
    let sample = page.lines().find(|line| !line.starts_with('#')).and_then(Sample::read)?;
    sample.vm.map(unescaped).filter(|vm| !vm.is_empty() && vm.len() <= 255)
}

#[cfg(test)]
mod tests;
