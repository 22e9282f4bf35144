// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The record of a finished case.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// The version of the record's format. Version 1 has no place in a table, and trackers by letters;
/// version 2 calls Linux in QEMU `linux`.
pub const FORMAT: u32 = 3;

/// One finished case: what `balloon-lab` keeps as `OUT/EXPERIMENT/CASE.json`, written atomically
/// when the case is done, so that an interrupted run keeps what it has and `--resume` skips it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseRecord {
    /// The version of its format: [`FORMAT`].
    pub format: u32,
    /// The name of the experiment.
    pub experiment: String,
    /// The name of the case.
    pub case: String,
    /// Where a table shows the case.
    pub place: Place,
    /// The seed of the random numbers.
    pub seed: u64,
    /// Every parameter with its value.
    pub parameters: BTreeMap<String, String>,
    /// The command that repeats it.
    pub command: String,
    /// The machine it ran on.
    pub machine: Machine,
    /// Single values by name.
    pub figures: BTreeMap<String, Figure>,
    /// Curves by name.
    pub series: BTreeMap<String, Series>,
    /// Guest memory over time.
    pub map: Option<MemoryMap>,
    /// The result of a race, a fault or a hypothesis.
    pub verdict: Option<Verdict>,
    /// Conditions that a reader needs to interpret the figures.
    pub notes: Vec<String>,
}

/// The table of an experiment that shows a case, and its column there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The table's name; empty for the experiment's only one.
    pub table: String,
    /// The column's heading.
    pub column: String,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The number.
    pub value: f64,
    /// Its unit; empty for a ratio or a count.
    pub unit: String,
    /// Its meaning, in a few words.
    pub what: String,
}

/// A curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Unit of the first coordinate.
    pub x_unit: String,
    /// Unit of the second.
    pub y_unit: String,
    /// Its meaning, in a few words.
    pub what: String,
    /// Its points, ordered by the first coordinate.
    pub points: Vec<(f64, f64)>,
}

/// The state of a cell of a [`MemoryMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CellState {
    /// At least one of them is in use.
    InUse,
    /// Free, and not reported.
    Free,
    /// Held for a report.
    Isolated,
    /// In a report that the host has not acknowledged.
    Reported,
    /// Discarded by the host.
    GivenBack,
}

impl CellState {
    /// All states, in the order in which a page passes through them.
    pub const ALL: [Self; 5] =
        [Self::InUse, Self::Free, Self::Isolated, Self::Reported, Self::GivenBack];

    /// The letter in [`MemoryMap::rows`].
    pub fn letter(self) -> char {
        match self {
            Self::InUse => 'u',
            Self::Free => 'f',
            Self::Isolated => 'i',
            Self::Reported => 'r',
            Self::GivenBack => 'g',
        }
    }

    /// The name in a legend.
    pub fn name(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::Free => "free",
            Self::Isolated => "isolated",
            Self::Reported => "reported",
            Self::GivenBack => "given back",
        }
    }

    /// The state of a letter.
    pub fn of(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.letter() == letter)
    }
}

/// Guest memory over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMap {
    /// Size of a cell in bytes.
    pub cell_bytes: u64,
    /// The time of each row, in microseconds.
    pub times_us: Vec<u64>,
    /// A row for each time, a letter for each cell: see [`CellState::letter`].
    pub rows: Vec<String>,
}

/// The result of a race, a fault or a hypothesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictKind {
    /// Nothing was lost and nothing hung.
    Survived,
    /// It failed in the way that is documented.
    AsDocumented,
    /// Something was lost.
    Lost,
    /// The case reproduced what the hypothesis says.
    Shown,
    /// The case did not reproduce it.
    NotShown,
    /// This machine cannot run the case.
    NotTestable,
}

/// A [`VerdictKind`] with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The result in a word.
    pub kind: VerdictKind,
    /// The observation behind it, in a sentence.
    pub text: String,
}

/// The results of a case; with its plan they become a [`CaseRecord`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// See [`CaseRecord::figures`].
    pub figures: BTreeMap<String, Figure>,
    /// See [`CaseRecord::series`].
    pub series: BTreeMap<String, Series>,
    /// See [`CaseRecord::map`].
    pub map: Option<MemoryMap>,
    /// See [`CaseRecord::verdict`].
    pub verdict: Option<Verdict>,
    /// See [`CaseRecord::notes`].
    pub notes: Vec<String>,
}

impl Findings {
    /// Findings that are only a verdict.
    pub fn verdict(kind: VerdictKind, text: impl Into<String>) -> Self {
        Self { verdict: Some(Verdict { kind, text: text.into() }), ..Self::default() }
    }

    /// Adds a figure. Leaves out a value that is not finite, such as a ratio of nothing.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str, what: &str) {
        if value.is_finite() {
            let figure = Figure { value, unit: unit.to_owned(), what: what.to_owned() };
            self.figures.insert(name.to_owned(), figure);
        }
    }

    /// Adds a count of anything.
    #[allow(clippy::cast_precision_loss)] // a figure for people
    pub fn count(&mut self, name: &str, count: u64, unit: &str, what: &str) {
        self.figure(name, count as f64, unit, what);
    }

    /// Adds a curve.
    pub fn series(
        &mut self,
        name: &str,
        (x_unit, y_unit): (&str, &str),
        what: &str,
        points: Vec<(f64, f64)>,
    ) {
        let [x_unit, y_unit, what] = [x_unit, y_unit, what].map(str::to_owned);
        self.series.insert(name.to_owned(), Series { x_unit, y_unit, what, points });
    }

    /// Adds a note.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}
