// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's pools of huge pages, which are empty unless an administrator fills them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

/// Pages that this process has added to pools and not removed.
static ADDED: Mutex<Vec<Added>> = Mutex::new(Vec::new());

/// Pages that were added to a pool.
struct Added {
    by: u64,
    nr_hugepages: PathBuf,
    pages: u64,
}

fn added() -> MutexGuard<'static, Vec<Added>> {
    ADDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pool of huge pages. Dropping it removes the pages that were added.
///
/// Code that ends the process otherwise calls [`take_back_all`]. SIGKILL leaves the pool raised.
#[derive(Debug)]
pub struct Pool {
    /// Its entry among those that were raised, if it was.
    id: Option<u64>,
}

impl Pool {
    /// Makes sure that `bytes` bytes of pages of `page_bytes` are free, for which the pool is raised
    /// where it is too small. Root may do that.
    ///
    /// # Errors
    /// When the host has no such pages, or not so many.
    pub fn with_free(page_bytes: u64, bytes: u64) -> Result<Self> {
        let kib = page_bytes >> 10;
        let folder = PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB"));
        Self::raised(&folder, bytes.div_ceil(page_bytes))
            .with_context(|| format!("huge pages of {kib} KiB"))
    }

    fn raised(folder: &Path, needed: u64) -> Result<Self> {
        // What others have mapped, but not touched yet, is theirs.
        let free = || -> Result<u64> {
            let reserved = number(&folder.join("resv_hugepages"))?;
            Ok(number(&folder.join("free_hugepages"))?.saturating_sub(reserved))
        };
        let missing = needed.saturating_sub(free()?);
        if missing == 0 {
            return Ok(Self { id: None });
        }
        let file = folder.join("nr_hugepages");
        let before = number(&file)?;
        let id = {
            // Held until it is known, so that `take_back_all` takes these pages, too.
            let mut added = added();
            fs::write(&file, (before + missing).to_string())
                .with_context(|| format!("{missing} pages are missing, {}", file.display()))?;
            // The kernel adds as many as it can.
            let pages = number(&file)?.saturating_sub(before);
            let id = added.iter().map(|added| added.by + 1).max().unwrap_or(0);
            added.push(Added { by: id, nr_hugepages: file, pages });
            id
        };
        let pool = Self { id: Some(id) };
        let free = free()?;
        ensure!(free >= needed, "too few huge pages are free (got {free}, expected {needed})");
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut added = added();
        let own = added.iter().position(|added| Some(added.by) == self.id);
        if let Some(own) = own {
            take_back(&added.swap_remove(own));
        }
    }
}

/// Removes what this process has added to pools, before the process ends. Pages in use are removed
/// when their users end.
pub fn take_back_all() {
    added().drain(..).for_each(|added| take_back(&added));
}

/// Others may have changed the pool since, so it is made smaller by what was added.
fn take_back(added: &Added) {
    if let Ok(now) = number(&added.nr_hugepages) {
        // Raising the pool needed the same permission.
        let _ = fs::write(&added.nr_hugepages, now.saturating_sub(added.pages).to_string());
    }
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.trim().parse().with_context(|| format!("{} is {text:?}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder like the kernel's, in which every page that is added is free.
    fn pool(pages: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in
            [("nr_hugepages", pages), ("free_hugepages", "9"), ("resv_hugepages", "1")]
        {
            fs::write(folder.path().join(name), value).unwrap();
        }
        folder
    }

    fn pages(folder: &tempfile::TempDir) -> u64 {
        number(&folder.path().join("nr_hugepages")).unwrap()
    }

    #[test]
    fn own_pages_are_removed_once_and_others_kept() {
        let folder = pool("20");
        // Nothing is missing: eight are free and unreserved.
        drop(Pool::raised(folder.path(), 8).unwrap());
        assert_eq!(pages(&folder), 20);
        // Two are; these files do not grow by themselves, so that it looks as if they could not be
        // had.
        let error = Pool::raised(folder.path(), 10).unwrap_err();
        assert_eq!(error.to_string(), "too few huge pages are free (got 8, expected 10)");
        assert_eq!(pages(&folder), 20, "it was put back");

        let own =
            |pages| Added { by: u64::MAX, nr_hugepages: folder.path().join("nr_hugepages"), pages };
        added().push(own(5));
        let pool = Pool { id: Some(u64::MAX) };
        fs::write(folder.path().join("nr_hugepages"), "32").unwrap();
        take_back_all();
        assert_eq!(pages(&folder), 27);
        drop(pool);
        assert_eq!(pages(&folder), 27, "once");
    }
}
