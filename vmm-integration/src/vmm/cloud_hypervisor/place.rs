// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a guest finds its daemon, and what it leaves behind when it is saved.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The folder of a guest, whichever VMM it is in.
///
/// The path of the daemon's socket is part of what is saved or sent to another VMM. It is a link here, which leads
/// to another daemon when the guest moves there.
pub(super) struct Place {
    folder: TempDir,
}

impl Place {
    /// A guest whose daemon listens on `socket`.
    ///
    /// # Errors
    /// When there can be no such folder.
    pub(super) fn new(socket: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ch-").tempdir().context("a temp folder")?;
        let place = Self { folder };
        place.lead_to(socket)?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The socket for the VMM.
    pub(super) fn socket(&self) -> PathBuf {
        self.path("balloon.sock")
    }

    /// Has [`Place::socket`] lead to a daemon.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub(super) fn lead_to(&self, socket: &Path) -> Result<()> {
        let link = self.path("next.sock");
        symlink(socket, &link)
            .and_then(|()| fs::rename(&link, self.socket()))
            .with_context(|| format!("making a link to {}", socket.display()))
    }

    /// A new folder for a guest that is saved.
    ///
    /// # Errors
    /// When there can be none.
    pub(super) fn saved(&self) -> Result<PathBuf> {
        let path = self.path("saved");
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_leads_to_the_last_daemon() {
        let place = Place::new(Path::new("/run/first.sock")).unwrap();
        let to = || fs::read_link(place.socket()).unwrap();
        assert_eq!(to(), Path::new("/run/first.sock"));
        place.lead_to(Path::new("/run/second.sock")).unwrap();
        assert_eq!(to(), Path::new("/run/second.sock"));
    }
}
