//! The host's pools of huge pages, of which there are none unless somebody reserves them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// A pool of huge pages, put back to what it was when this is dropped.
///
/// Who kills the process meanwhile leaves the pool raised.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    before: Option<u64>,
}

impl Pool {
    /// Makes sure that `bytes` bytes of pages of `page_bytes` are free, for which the pool is raised
    /// where it is too small. Root may do that.
    ///
    /// # Errors
    /// Where the host has no such pages, or not so many.
    pub fn with_free(page_bytes: u64, bytes: u64) -> Result<Self> {
        let kib = page_bytes >> 10;
        let folder = PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB"));
        let number = |name: &str| -> Result<u64> {
            let path = folder.join(name);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            text.trim().parse().with_context(|| format!("{} is {text:?}", path.display()))
        };
        let needed = bytes.div_ceil(page_bytes);
        // What others have mapped, but not touched yet, is theirs.
        let free = || -> Result<u64> {
            Ok(number("free_hugepages")?.saturating_sub(number("resv_hugepages")?))
        };
        let missing = needed.saturating_sub(free()?);
        let mut pool = Self { path: folder.join("nr_hugepages"), before: None };
        if missing == 0 {
            return Ok(pool);
        }
        let before = number("nr_hugepages")?;
        pool.before = Some(before);
        fs::write(&pool.path, (before + missing).to_string()).with_context(|| {
            format!("{missing} huge pages of {kib} KiB are missing, {}", pool.path.display())
        })?;
        let free = free()?;
        ensure!(free >= needed, "{needed} pages of {kib} KiB are needed and {free} can be had");
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // Whoever may raise it may put it back.
            let _ = fs::write(&self.path, before.to_string());
        }
    }
}
