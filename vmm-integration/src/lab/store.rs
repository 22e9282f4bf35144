//! What a run leaves behind: a file for each case that has finished.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::machine::Machine;

/// One finished case: what `balloon-lab` keeps as `OUT/EXPERIMENT/CASE.json`, written atomically
/// when the case is done, so that an interrupted run keeps what it has and `--resume` skips it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseRecord {
    /// Which experiment, or `race`.
    pub experiment: String,
    /// Which of its cases.
    pub case: String,
    /// What the random numbers began with.
    pub seed: u64,
    /// Every parameter with its value.
    pub parameters: BTreeMap<String, String>,
    /// The one command that repeats it.
    pub command: String,
    /// What it ran on.
    pub machine: Machine,
    /// Single values by name.
    pub figures: BTreeMap<String, Figure>,
    /// Curves by name.
    pub series: BTreeMap<String, Series>,
    /// Guest memory over time.
    pub map: Option<MemoryMap>,
    /// What came of a race.
    pub verdict: Option<Verdict>,
    /// What a reader has to know.
    pub notes: Vec<String>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// How much.
    pub value: f64,
    /// Of what unit; empty for a ratio or a count.
    pub unit: String,
    /// What it is, in a few words.
    pub what: String,
}

/// A curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Unit of the first coordinate.
    pub x_unit: String,
    /// Unit of the second.
    pub y_unit: String,
    /// What it is, in a few words.
    pub what: String,
    /// In the order of the first coordinate.
    pub points: Vec<(f64, f64)>,
}

/// What the pages of a cell of a [`MemoryMap`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CellState {
    /// At least one of them is in use.
    InUse,
    /// Free, and the host has no word of it.
    Free,
    /// Held for a report.
    Isolated,
    /// In a report that the host has not acknowledged.
    Reported,
    /// The host has them.
    GivenBack,
}

impl CellState {
    /// All of them, in the order of a page's way.
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

    /// For a legend.
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
    /// Bytes of a cell.
    pub cell_bytes: u64,
    /// When each row was taken, in microseconds.
    pub times_us: Vec<u64>,
    /// A row for each time, a letter for each cell: see [`CellState::letter`].
    pub rows: Vec<String>,
}

/// What came of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictKind {
    /// Nothing was lost and nothing hung.
    Survived,
    /// It failed in the way that is documented.
    AsDocumented,
    /// Something was lost.
    Lost,
    /// A hypothesis that was seen to be true here.
    Shown,
    /// A hypothesis that was not seen to be true here.
    NotShown,
    /// It cannot be tried here.
    NotTestable,
}

/// What came of a scenario, and why that is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// In a word.
    pub kind: VerdictKind,
    /// In a sentence.
    pub text: String,
}

/// What a case found out; with its plan it becomes a [`CaseRecord`].
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
    /// Adds a figure. One that is no number (of nothing, a ratio) is left out.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str, what: &str) {
        if value.is_finite() {
            let figure = Figure { value, unit: unit.to_owned(), what: what.to_owned() };
            self.figures.insert(name.to_owned(), figure);
        }
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

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// A store in `folder`, which is made when the first record is.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self, experiment: &str, case: &str) -> PathBuf {
        self.folder.join(experiment).join(format!("{case}.json"))
    }

    /// The record of a case that has finished; none if there is none or it is of another form.
    pub fn get(&self, experiment: &str, case: &str) -> Option<CaseRecord> {
        read(&self.file(experiment, case)).ok()
    }

    /// Keeps a record: all of it is there afterwards, or what was there before.
    ///
    /// # Errors
    /// Where it cannot be written, or a name is not fit for a file.
    pub fn put(&self, record: &CaseRecord) -> Result<()> {
        for name in [&record.experiment, &record.case] {
            let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            ensure!(
                !name.is_empty() && !name.starts_with('.') && name.chars().all(fit),
                "{name:?} cannot name a file: expected letters, digits, '-', '_' and '.'"
            );
        }
        let file = self.file(&record.experiment, &record.case);
        let folder = self.folder.join(&record.experiment);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let mut partial = tempfile::NamedTempFile::new_in(&folder)
            .with_context(|| format!("creating a file in {}", folder.display()))?;
        serde_json::to_writer_pretty(&mut partial, record).context("writing a record")?;
        partial.write_all(b"\n").context("writing a record")?;
        partial.as_file().sync_all().context("writing a record")?;
        partial.persist(&file).with_context(|| format!("naming {}", file.display()))?;
        Ok(())
    }

    /// Every record, by experiment and case.
    ///
    /// # Errors
    /// Where there is no folder, or a file is no record; the message names it.
    pub fn records(&self) -> Result<Vec<CaseRecord>> {
        let listing = |folder: &Path| -> Result<Vec<PathBuf>> {
            let entries =
                fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
            let mut paths =
                entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
            paths.sort();
            Ok(paths)
        };
        let mut records = Vec::new();
        for experiment in listing(&self.folder)?.iter().filter(|path| path.is_dir()) {
            for file in listing(experiment)? {
                if file.extension().is_some_and(|ending| ending == "json") {
                    records.push(read(&file)?);
                }
            }
        }
        Ok(records)
    }
}

fn read(file: &Path) -> Result<CaseRecord> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no record of this lab", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(case: &str) -> CaseRecord {
        let mut findings = Findings::default();
        findings.figure("duplicates", 0.5, "", "reported again");
        findings.figure("of-nothing", f64::NAN, "", "left out");
        findings.series("held", ("s", "MiB"), "withheld", vec![(0.0, 1.5), (2.0, 0.0)]);
        let Findings { figures, series, .. } = findings;
        CaseRecord {
            experiment: "test".to_owned(),
            case: case.to_owned(),
            seed: u64::MAX,
            parameters: BTreeMap::from([("rounds".to_owned(), "3".to_owned())]),
            command: format!("{} bench test", super::super::PROGRAM),
            machine: Machine::default(),
            figures,
            series,
            map: Some(MemoryMap {
                cell_bytes: 4096,
                times_us: vec![0, 1_500_000],
                rows: vec!["uf".into(), "gi".into()],
            }),
            verdict: Some(Verdict { kind: VerdictKind::AsDocumented, text: "it hangs".to_owned() }),
            notes: vec!["a note".to_owned()],
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("new"));
        assert_eq!(store.get("test", "one"), None);
        assert!(store.records().is_err(), "there is no folder yet");
        for case in ["two", "one"] {
            store.put(&record(case)).unwrap();
        }
        assert_eq!(store.get("test", "one"), Some(record("one")));
        assert_eq!(store.records().unwrap(), [record("one"), record("two")]);
        assert!(!record("one").figures.contains_key("of-nothing"));
    }

    #[test]
    fn a_half_written_record_counts_for_nothing_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store.put(&record("one")).unwrap();
        let file = folder.path().join("test/one.json");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, &text[..text.len() / 2]).unwrap();
        assert_eq!(store.get("test", "one"), None);
        let said = format!("{:#}", store.records().unwrap_err());
        assert!(said.contains("one.json"), "{said}");
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let store = Store::new("/nowhere");
        for case in ["../x", "a/b", "", ".hidden", "a b"] {
            let said = store.put(&record(case)).unwrap_err().to_string();
            assert!(said.contains("cannot name a file"), "{said}");
        }
    }

    #[test]
    fn letters_and_states_are_one_to_one() {
        for state in CellState::ALL {
            assert_eq!(CellState::of(state.letter()), Some(state));
        }
        assert_eq!(CellState::of('x'), None);
    }
}
