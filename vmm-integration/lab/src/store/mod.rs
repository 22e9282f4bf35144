// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The folder of a run: a file for each finished case.

mod record;

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::record::{
    CaseRecord, CellState, FORMAT, Figure, Findings, MemoryMap, Place, Series, Verdict, VerdictKind,
};
use crate::machine::Machine;
use crate::natural::natural;

/// The folder of failed cases in an experiment's folder.
const FAILED: &str = "failed";
/// The prefix of a file that is not completely written.
const PARTIAL: &str = ".partial-";

/// A case that failed: `OUT/EXPERIMENT/failed/CASE.json`, there until the case succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The name of the experiment.
    pub experiment: String,
    /// The name of the case.
    pub case: String,
    /// The command that repeats it.
    pub command: String,
    /// The machine it ran on.
    pub machine: Machine,
    /// The error with its causes.
    pub error: String,
}

/// The content of a store.
#[derive(Debug, Default)]
pub struct Kept {
    /// The records of finished cases, by experiment and case.
    pub records: Vec<CaseRecord>,
    /// The failed cases.
    pub failures: Vec<Failure>,
    /// An error for each file that is not a record; its text names the file.
    pub unreadable: Vec<anyhow::Error>,
}

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// A store in `folder`, which the first record creates.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self, experiment: &str, case: &str) -> PathBuf {
        self.folder.join(experiment).join(format!("{case}.json"))
    }

    /// The record of a finished case; none if it is missing, unreadable or of another format.
    pub fn get(&self, experiment: &str, case: &str) -> Option<CaseRecord> {
        read_record(&self.file(experiment, case)).ok()
    }

    /// Locks the folder for one run, and checks that it is writable.
    ///
    /// # Errors
    /// If it cannot be created or written to, or another run has locked it.
    pub fn claim(&self) -> Result<Claim> {
        let folder = self.folder.display();
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot keep records in {folder}"))?;
        let path = self.folder.join(".lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| {
            format!("cannot keep records in {folder}: opening {}", path.display())
        })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "cannot keep records in {folder}: another run uses it; give another folder with \
                 --out DIR, or wait for that run to end"
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        // A run that was killed while it wrote left these.
        for file in self.files().unwrap_or_default() {
            let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            if name.starts_with(PARTIAL) {
                fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
            }
        }
        Ok(Claim { _lock: lock })
    }

    /// Writes a record atomically, and removes an earlier failure of the case.
    ///
    /// # Errors
    /// If it cannot be written, or a name cannot name a file.
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

    /// Writes a failure. An earlier record of the case stays.
    ///
    /// # Errors
    /// See [`Store::put`].
    pub fn put_failure(&self, failure: &Failure) -> Result<()> {
        fit(&[&failure.experiment, &failure.case])?;
        write(&self.failure_file(&failure.experiment, &failure.case), failure)
    }

    fn failure_file(&self, experiment: &str, case: &str) -> PathBuf {
        self.folder.join(experiment).join(FAILED).join(format!("{case}.json"))
    }

    /// Reads all files; an unreadable one does not hide the others.
    ///
    /// # Errors
    /// If a folder cannot be listed.
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

    /// The files in the folders of experiments and of failures, in natural order.
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

/// Keeps the folder of a [`Store`] locked until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

fn listing(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry.with_context(|| format!("listing {}", folder.display()))?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    // Without the extension: "a.json" comes before "a-b.json".
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

/// Writes a file atomically.
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
        .with_context(|| format!("{} is not a record of this lab", file.display()))
}

fn read_record(file: &Path) -> Result<CaseRecord> {
    /// The part that every version has; those before version 1 had no number.
    #[derive(Deserialize)]
    struct Version {
        #[serde(default)]
        format: u32,
    }
    let Version { format } = read(file)?;
    ensure!(
        format == FORMAT,
        "{} has another format (got version {format}, expected {FORMAT}): remove it and run its \
         case again, or read it with the version of the lab that wrote it",
        file.display()
    );
    read(file)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
            place: Place { table: "rows".to_owned(), column: case.to_owned() },
            seed: u64::MAX,
            parameters: BTreeMap::from([("rounds".to_owned(), "3".to_owned())]),
            command: format!("{} bench test", crate::PROGRAM),
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
    fn kept_records_are_read_back() {
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
    fn unreadable_file_is_named_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        for case in ["one", "two", "three", "four", "five"] {
            store.put(&record(case)).unwrap();
        }
        let file = |case: &str| folder.path().join(format!("test/{case}.json"));
        let text = fs::read_to_string(file("one")).unwrap();
        fs::write(file("one"), &text[..text.len() / 2]).unwrap();
        fs::write(file("two"), text.replacen("\"format\": 3", "\"format\": 1", 1)).unwrap();
        fs::write(file("three"), text.replacen("\"figures\"", "\"values\"", 1)).unwrap();
        fs::write(file("four"), [0xff; 9]).unwrap();
        assert_eq!(store.get("test", "one"), None);
        let kept = store.kept().unwrap();
        assert_eq!(kept.records, [record("five")]);
        let said: Vec<String> = kept.unreadable.iter().map(|why| format!("{why:#}")).collect();
        for (case, why) in [
            ("one", "EOF while parsing"),
            ("two", "another format (got version 1, expected 3)"),
            ("three", "missing field `figures`"),
            ("four", "expected value"),
        ] {
            let named = |line: &&String| line.contains(&format!("{case}.json"));
            assert!(said.iter().find(named).is_some_and(|line| line.contains(why)), "{said:?}");
        }
    }

    #[test]
    fn failure_is_kept_until_the_case_succeeds() {
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
    fn claim_excludes_other_runs_and_drops_partial_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store.put(&record("one")).unwrap();
        let rest = folder.path().join("test/.partial-x");
        fs::write(&rest, "{").unwrap();
        let claim = store.claim().unwrap();
        assert!(!rest.exists());
        let said = store.claim().unwrap_err().to_string();
        assert!(said.contains("another run uses it"), "{said}");
        drop(claim);
        store.claim().unwrap();

        let file = Store::new(folder.path().join("test/one.json"));
        let said = format!("{:#}", file.claim().unwrap_err());
        assert!(said.contains("cannot keep records in") && said.contains("one.json"), "{said}");
    }

    #[test]
    fn name_that_leads_elsewhere_is_refused() {
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
