// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list of mutants: the files in `mutants`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// One edit of one source file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutant {
    /// Unique, in kebab-case.
    pub(super) name: String,
    /// What is wrong, in one sentence.
    pub(super) about: String,
    /// The source file, from the workspace's folder.
    pub(super) file: String,
    /// Text that occurs once in it.
    pub(super) find: String,
    /// What stands there instead.
    pub(super) replace: String,
    /// What must notice.
    pub(super) caught_by: CaughtBy,
    /// One of those that CI runs.
    #[serde(default)]
    pub(super) quick: bool,
    /// The room: name of the list's file.
    #[serde(skip)]
    pub(super) room: String,
}

/// The check that must notice a mutant.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum CaughtBy {
    /// The first that falls of these good configurations of the explorer, names or patterns.
    Explore(Vec<String>),
    /// A test of a package: `PACKAGE FILTER`.
    Test(String),
    /// A fuzz target.
    Fuzz(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Room {
    mutant: Vec<Mutant>,
}

impl Mutant {
    /// `text`, the contents of its file, with the edit.
    ///
    /// # Errors
    /// If the text to replace is not there, or more than once.
    pub(super) fn apply(&self, text: &str) -> Result<String> {
        let Self { file, find, replace, .. } = self;
        match text.matches(find.as_str()).count() {
            1 => Ok(text.replace(find.as_str(), replace)),
            0 => bail!("no longer applies: {file} does not contain {find:?}"),
            many => bail!("no longer applies: {file} contains {find:?} {many} times"),
        }
    }
}

/// Reads every list in `folder`, sorted by room; in a room the order of its file.
///
/// # Errors
/// If one cannot be read or is no list of mutants, or a name occurs twice.
pub(super) fn load(folder: &Path) -> Result<Vec<Mutant>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut all: Vec<Mutant> = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let room: Room = toml::from_str(&text).with_context(|| file.display().to_string())?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        for mutant in room.mutant {
            ensure!(
                all.iter().all(|other| other.name != mutant.name),
                "{}: two mutants are called {}",
                file.display(),
                mutant.name
            );
            ensure!(
                !mutant.quick || !matches!(mutant.caught_by, CaughtBy::Fuzz(_)),
                "{}: {} takes the build of a fuzz target, which is not quick",
                file.display(),
                mutant.name
            );
            all.push(Mutant { room: name.clone().into_owned(), ..mutant });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"
        [[mutant]]
        name = "a"
        about = "b"
        file = "c"
        find = "old"
        replace = "new"
        caught_by.explore = ["d", "e-*"]
    "#;

    fn read(text: &str) -> Result<Vec<Mutant>> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("room.toml"), text)?;
        load(folder.path())
    }

    #[test]
    fn list_is_read_with_its_room() {
        let mutants = read(ONE).expect("a list");
        let patterns = vec!["d".to_owned(), "e-*".to_owned()];
        assert_eq!((mutants.len(), &*mutants[0].room, mutants[0].quick), (1, "room", false));
        assert_eq!(mutants[0].caught_by, CaughtBy::Explore(patterns));
        let test = ONE.replace("caught_by.explore = [\"d\", \"e-*\"]", "caught_by.test = 'p f'");
        let mutants = read(&format!("{test}\nquick = true")).expect("a list");
        assert_eq!(mutants[0].caught_by, CaughtBy::Test("p f".to_owned()));
        assert!(mutants[0].quick);
    }

    #[test]
    fn list_with_a_mistake_is_refused() {
        let wrong = |text: &str| format!("{:#}", read(text).expect_err("a mistake"));
        assert!(wrong(&format!("{ONE}\nslow = true")).contains("unknown field `slow`"));
        assert!(wrong(&ONE.replace("explore", "luck")).contains("unknown variant `luck`"));
        assert!(wrong(&format!("{ONE}{ONE}")).contains("two mutants are called a"));
        let fuzz = ONE.replace("caught_by.explore = [\"d\", \"e-*\"]", "caught_by.fuzz = 't'");
        assert!(
            wrong(&format!("{fuzz}\nquick = true")).contains("a takes the build of a fuzz target")
        );
    }

    #[test]
    fn edit_applies_to_one_place_only() {
        let mutant = &read(ONE).expect("a list")[0];
        assert_eq!(mutant.apply("an old text").expect("it applies"), "an new text");
        for (text, why) in [("a text", "does not contain"), ("old, old", "2 times")] {
            let error = mutant.apply(text).expect_err(why).to_string();
            assert!(error.contains("no longer applies: c ") && error.contains(why), "{error}");
        }
    }
}
