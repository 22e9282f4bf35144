// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file of the policy: read at the start, when it changes and at SIGHUP.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use balloon_policy::{Rules, RulesError};

use crate::sockets::Watch;

/// Most bytes of a policy.
const MOST_BYTES: u64 = 1 << 20;

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RulesFileError {
    #[error("cannot read the policy {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the policy {} is refused", path.display())]
    Refused {
        path: PathBuf,
        #[source]
        source: RulesError,
    },
    #[error("cannot watch {}", path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The file, and how it was when it was read last.
#[derive(Debug)]
pub(super) struct RulesFile {
    path: PathBuf,
    text: String,
    watch: Watch,
}

impl RulesFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// [`RulesFileError`]
    pub(super) fn open(path: &Path) -> Result<(Self, Rules), RulesFileError> {
        let watched = |source| RulesFileError::Watch { path: path.to_owned(), source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // The folder, since editors, packages and Kubernetes replace the file or a link above it.
        let watch = Watch::with_writes(&[folder.to_owned()]).map_err(watched)?;
        let text = read(path)?;
        let rules = parse(path, &text)?;
        Ok((Self { path: path.to_owned(), text, watch }, rules))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until something changes beside the file.
    ///
    /// # Errors
    /// If the folder cannot be watched any more.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        self.watch.changed().await
    }

    /// Reads the file again, and returns its rules if it is not as it was, or if `always`.
    ///
    /// # Errors
    /// [`RulesFileError`]. The same file is refused once.
    pub(super) fn read_again(&mut self, always: bool) -> Result<Option<Rules>, RulesFileError> {
        let text = read(&self.path)?;
        if text == self.text && !always {
            return Ok(None);
        }
        self.text = text;
        parse(&self.path, &self.text).map(Some)
    }
}

fn read(path: &Path) -> Result<String, RulesFileError> {
    let failed = |source| RulesFileError::Read { path: path.to_owned(), source };
    let data = fs::metadata(path).map_err(failed)?;
    if !data.is_file() || data.len() > MOST_BYTES {
        let text = format!("expected a file with at most {MOST_BYTES} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
    }
    fs::read_to_string(path).map_err(failed)
}

fn parse(path: &Path, text: &str) -> Result<Rules, RulesFileError> {
    Rules::from_toml(text)
        .map_err(|source| RulesFileError::Refused { path: path.to_owned(), source })
}
