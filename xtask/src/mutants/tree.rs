// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A copy of the sources, to be changed. The sources themselves are never touched.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::list::Mutant;
use crate::files;

/// The copy of the sources, in which at most one file is changed.
pub(super) struct Tree {
    sources: PathBuf,
    copy: PathBuf,
    changed: Option<String>,
}

impl Tree {
    /// Makes `copy` the same as `sources`, but for what Git ignores there. Files that are the same
    /// already stay as they are, so that cargo does not build them again.
    ///
    /// # Errors
    /// If the sources cannot be listed, or a file cannot be copied.
    pub(super) fn new(sources: PathBuf, copy: PathBuf) -> Result<Self> {
        let files = files::known_to_git(&sources)?;
        fs::create_dir_all(&copy).with_context(|| copy.display().to_string())?;
        remove_others(&copy, Path::new(""), &files)?;
        for file in &files {
            copy_if_different(&sources.join(file), &copy.join(file))?;
        }
        Ok(Self { sources, copy, changed: None })
    }

    /// The folder of the copy.
    pub(super) fn path(&self) -> &Path {
        &self.copy
    }

    /// Makes `mutant` the only change of the copy.
    ///
    /// # Errors
    /// If it does not apply, or a file cannot be written.
    pub(super) fn plant(&mut self, mutant: &Mutant) -> Result<()> {
        self.restore()?;
        let source = self.sources.join(&mutant.file);
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        let text = mutant.apply(&text)?;
        self.changed = Some(mutant.file.clone());
        let to = self.copy.join(&mutant.file);
        fs::write(&to, text).with_context(|| to.display().to_string())
    }

    fn restore(&mut self) -> Result<()> {
        if let Some(file) = &self.changed {
            copy_if_different(&self.sources.join(file), &self.copy.join(file))?;
            self.changed = None;
        }
        Ok(())
    }
}

/// Removes what is below `folder` of `copy` and not one of `files`.
fn remove_others(copy: &Path, folder: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    let path = copy.join(folder);
    for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
        let entry = entry?;
        let file = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            remove_others(copy, &file, files)?;
        } else if !files.contains(&file) {
            fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

fn copy_if_different(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| from.display().to_string())?;
    match fs::read(to) {
        Ok(old) if old == new => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            to.parent().map_or(Ok(()), fs::create_dir_all)?;
        }
        Err(error) => return Err(error).with_context(|| to.display().to_string()),
    }
    fs::copy(from, to).with_context(|| to.display().to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::mutants::list::CaughtBy;

    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let init = Command::new("git").args(["init", "-q"]).current_dir(folder.path()).status();
        assert!(init.expect("git").success());
        fs::create_dir(folder.path().join("src")).expect("a folder");
        let files =
            [(".gitignore", "built"), ("src/a.rs", "one two"), ("src/b.rs", ""), ("built", "")];
        for (file, text) in files {
            fs::write(folder.path().join(file), text).expect("a file");
        }
        folder
    }

    fn mutant(file: &str, find: &str) -> Mutant {
        let [name, about, replace, room] = ["m", "wrong", "three", "r"].map(str::to_owned);
        let (file, find) = (file.to_owned(), find.to_owned());
        let caught_by = CaughtBy::Explore(Vec::new());
        Mutant { name, about, file, find, replace, caught_by, quick: false, room }
    }

    #[test]
    fn copy_follows_the_sources_and_keeps_the_rest() {
        let (sources, copy) = (repository(), tempfile::tempdir().expect("a folder"));
        let at = |file: &str| copy.path().join(file);
        let written = |file: &str| fs::metadata(at(file)).and_then(|m| m.modified()).expect(file);
        let sync = || Tree::new(sources.path().to_owned(), copy.path().to_owned()).expect("a copy");
        sync();
        assert_eq!(fs::read_to_string(at("src/a.rs")).expect("copied"), "one two");
        assert!(!at("built").exists());
        let before = written("src/a.rs");
        fs::remove_file(sources.path().join("src/b.rs")).expect("it was there");
        fs::write(at("stray.rs"), "").expect("a file");
        sync();
        assert!(!at("src/b.rs").exists() && !at("stray.rs").exists());
        assert_eq!(written("src/a.rs"), before, "it is the same and was copied again");
    }

    #[test]
    fn planting_changes_one_file_of_the_copy() {
        let (sources, copy) = (repository(), tempfile::tempdir().expect("a folder"));
        let mut tree =
            Tree::new(sources.path().to_owned(), copy.path().to_owned()).expect("a copy");
        let read = |folder: &Path| fs::read_to_string(folder.join("src/a.rs")).expect("a file");
        tree.plant(&mutant("src/a.rs", "one")).expect("it applies");
        assert_eq!(
            (read(copy.path()), read(sources.path())),
            ("three two".into(), "one two".into())
        );
        tree.plant(&mutant("src/a.rs", "two")).expect("it applies");
        assert_eq!(read(copy.path()), "one three");
        let error = tree.plant(&mutant("src/a.rs", "three")).expect_err("it is not in the sources");
        assert!(error.to_string().contains("no longer applies: src/a.rs"), "{error}");
        assert_eq!(read(copy.path()), "one two");
    }
}
