// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run leaves behind: a file for each case that has finished.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::table::natural;

/// The form of records. What is only added leaves it as it is.
pub const FORMAT: u32 = 1;
/// Where a store keeps the cases that failed, in an experiment's folder.
const FAILED: &str = "failed";
/// What files are called that are not yet as a whole.
const PARTIAL: &str = ".partial-";

/// One finished case: what `balloon-lab` keeps as `OUT/EXPERIMENT/CASE.json`, written atomically
/// when the case is done, so that an interrupted run keeps what it has and `--resume` skips it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseRecord {
    /// What form it is of: [`FORMAT`], or 0 if it was kept before forms had numbers.
    #[serde(default)]
    pub format: u32,
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

/// A case that failed: `OUT/EXPERIMENT/failed/CASE.json`, there until the case succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which experiment.
    pub experiment: String,
    /// Which of its cases.
    pub case: String,
    /// The one command that repeats it.
    pub command: String,
    /// What it ran on.
    pub machine: Machine,
    /// Why, with what it came from.
    pub error: String,
}

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Kept {
    /// Of cases that have finished, by experiment and case.
    pub records: Vec<CaseRecord>,
    /// Of cases that failed.
    pub failures: Vec<Failure>,
    /// Files that are no such thing, and why not; the text names the file.
    pub unreadable: Vec<anyhow::Error>,
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
        read_record(&self.file(experiment, case)).ok()
    }

    /// Takes the folder for one run, and shows that records can be kept there.
    ///
    /// # Errors
    /// Where it cannot be made or written to, or another run has it.
    pub fn claim(&self) -> Result<Claim> {
        let folder = self.folder.display();
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("records cannot be kept in {folder}"))?;
        let path = self.folder.join(".lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| {
            format!("records cannot be kept in {folder}: opening {}", path.display())
        })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another run keeps its records in {folder}: expected a folder that no run uses, as \
                 in --out DIR, or wait until that run has ended"
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        // Of a run that was killed while it wrote.
        for file in self.files().unwrap_or_default() {
            let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            if name.starts_with(PARTIAL) {
                fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
            }
        }
        Ok(Claim { _lock: lock })
    }

    /// Keeps a record: all of it is there afterwards, or what was there before. That the case failed
    /// once is forgotten.
    ///
    /// # Errors
    /// Where it cannot be written, or a name is not fit for a file.
    pub fn put(&self, record: &CaseRecord) -> Result<()> {
        let CaseRecord { experiment, case, .. } = record;
        fit(&[experiment, case])?;
        write(&self.file(experiment, case), record)?;
        let failed = self.failure_file(experiment, case);
        match fs::remove_file(&failed) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", failed.display()))
            }
            _ => Ok(()),
        }
    }

    /// Keeps that a case failed. A record of it from before stays.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_failure(&self, failure: &Failure) -> Result<()> {
        fit(&[&failure.experiment, &failure.case])?;
        write(&self.failure_file(&failure.experiment, &failure.case), failure)
    }

    fn failure_file(&self, experiment: &str, case: &str) -> PathBuf {
        self.folder.join(experiment).join(FAILED).join(format!("{case}.json"))
    }

    /// All that is kept; files that cannot be read do not hide those that can.
    ///
    /// # Errors
    /// Where a folder cannot be listed.
    pub fn kept(&self) -> Result<Kept> {
        let mut kept = Kept::default();
        for file in self.files()? {
            if file.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            let failed = file.parent().is_some_and(|folder| folder.ends_with(FAILED));
            let done = if failed {
                read(&file).map(|failure| kept.failures.push(failure))
            } else {
                read_record(&file).map(|record| kept.records.push(record))
            };
            kept.unreadable.extend(done.err());
        }
        Ok(kept)
    }

    /// The files in the folders of experiments and in those of failures, by name as people count.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for experiment in listing(&self.folder)?.iter().filter(|path| path.is_dir()) {
            let (folders, found): (Vec<_>, Vec<_>) =
                listing(experiment)?.into_iter().partition(|path| path.is_dir());
            files.extend(found);
            for folder in folders.iter().filter(|folder| folder.ends_with(FAILED)) {
                files.extend(listing(folder)?);
            }
        }
        Ok(files)
    }
}

/// A folder that no other run keeps records in, for as long as this is there.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

fn listing(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry.with_context(|| format!("listing {}", folder.display()))?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    // Without its ending: "a.json" comes before "a-b.json".
    paths.sort_by_cached_key(|path| natural(&path.with_extension("").to_string_lossy()));
    Ok(paths)
}

fn fit(names: &[&str]) -> Result<()> {
    for name in names {
        let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(
            !name.is_empty() && !name.starts_with('.') && name.chars().all(fit),
            "{name:?} cannot name a file: expected letters, digits, '-', '_' and '.'"
        );
    }
    Ok(())
}

/// Writes a file as a whole.
fn write(file: &Path, content: &impl Serialize) -> Result<()> {
    let writing = || format!("writing {}", file.display());
    let folder = file.parent().with_context(writing)?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut text = serde_json::to_vec_pretty(content).with_context(writing)?;
    text.push(b'\n');
    let mut partial =
        tempfile::Builder::new().prefix(PARTIAL).tempfile_in(folder).with_context(writing)?;
    partial.write_all(&text).with_context(writing)?;
    partial.as_file().sync_all().with_context(writing)?;
    partial.persist(file).with_context(writing)?;
    Ok(())
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no record of this lab", file.display()))
}

fn read_record(file: &Path) -> Result<CaseRecord> {
    /// What every form has.
    #[derive(Deserialize)]
    struct Form {
        #[serde(default)]
        format: u32,
    }
    let Form { format } = read(file)?;
    ensure!(
        format <= FORMAT,
        "{} is a record of form {format}, of a newer lab: expected forms up to {FORMAT}",
        file.display()
    );
    read(file)
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
            format: FORMAT,
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
        assert!(store.kept().is_err(), "there is no folder yet");
        for case in ["two", "one"] {
            store.put(&record(case)).unwrap();
        }
        assert_eq!(store.get("test", "one"), Some(record("one")));
        assert_eq!(store.kept().unwrap().records, [record("one"), record("two")]);
        assert!(!record("one").figures.contains_key("of-nothing"));
    }

    #[test]
    fn a_file_that_is_no_record_is_named_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        for case in ["one", "two", "three", "four", "five"] {
            store.put(&record(case)).unwrap();
        }
        let file = |case: &str| folder.path().join(format!("test/{case}.json"));
        let text = fs::read_to_string(file("one")).unwrap();
        fs::write(file("one"), &text[..text.len() / 2]).unwrap();
        fs::write(file("two"), text.replacen("\"format\": 1", "\"format\": 7", 1)).unwrap();
        fs::write(file("three"), text.replacen("\"figures\"", "\"values\"", 1)).unwrap();
        fs::write(file("four"), [0xff; 9]).unwrap();
        assert_eq!(store.get("test", "one"), None);
        let kept = store.kept().unwrap();
        assert_eq!(kept.records, [record("five")]);
        let said: Vec<String> = kept.unreadable.iter().map(|why| format!("{why:#}")).collect();
        for (case, why) in [
            ("one", "EOF while parsing"),
            ("two", "form 7, of a newer lab: expected forms up to 1"),
            ("three", "missing field `figures`"),
            ("four", "expected value"),
        ] {
            let named = |line: &&String| line.contains(&format!("{case}.json"));
            assert!(said.iter().find(named).is_some_and(|line| line.contains(why)), "{said:?}");
        }
    }

    #[test]
    fn a_failure_is_kept_until_the_case_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let CaseRecord { experiment, case, command, machine, .. } = record("one");
        let failure = Failure { experiment, case, command, machine, error: "why".to_owned() };
        store.put_failure(&failure).unwrap();
        let kept = store.kept().unwrap();
        assert_eq!((kept.failures, kept.records.len()), (vec![failure], 0));
        store.put(&record("one")).unwrap();
        let kept = store.kept().unwrap();
        assert_eq!((kept.failures.len(), kept.records.len()), (0, 1));
    }

    #[test]
    fn a_folder_is_of_one_run_at_a_time_and_rid_of_what_was_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store.put(&record("one")).unwrap();
        let rest = folder.path().join("test/.partial-x");
        fs::write(&rest, "{").unwrap();
        let claim = store.claim().unwrap();
        assert!(!rest.exists());
        let said = store.claim().unwrap_err().to_string();
        assert!(said.contains("another run keeps its records in"), "{said}");
        drop(claim);
        store.claim().unwrap();

        let file = Store::new(folder.path().join("test/one.json"));
        let said = format!("{:#}", file.claim().unwrap_err());
        assert!(said.contains("records cannot be kept in") && said.contains("one.json"), "{said}");
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
