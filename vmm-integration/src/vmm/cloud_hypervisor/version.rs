// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The version of a binary, and what differs between versions.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::fetch::apt::output;

/// The first with a generic vhost-user device.
const FIRST: u32 = 52;
/// The first that calls the device's type so.
const DEVICE_TYPE: u32 = 53;

/// A version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// The line in which the binary says it.
    pub(super) line: String,
    major: u32,
}

impl Version {
    /// Asks a binary.
    ///
    /// # Errors
    /// When it is another program, or too old.
    pub(super) fn of(binary: &Path) -> Result<Self> {
        let text = output(Command::new(binary).arg("--version"));
        let text = text.with_context(|| format!("asking {} for its version", binary.display()))?;
        let line = text.lines().next().unwrap_or_default();
        let version = Self::parse(line).with_context(|| {
            format!(
                "expected {} to be a cloud-hypervisor: it calls itself {line:?}",
                binary.display()
            )
        })?;
        ensure!(
            version.major >= FIRST,
            "cloud-hypervisor {FIRST} or later is needed for --generic-vhost-user: {} is {line:?}",
            binary.display()
        );
        Ok(version)
    }

    /// Reads "cloud-hypervisor v53.0", or without the "v".
    pub(super) fn parse(line: &str) -> Option<Self> {
        let number = line.trim().strip_prefix("cloud-hypervisor ")?.trim_start_matches('v');
        let major = number.split(['.', '-']).next()?.parse().ok()?;
        Some(Self { line: line.trim().to_owned(), major })
    }

    /// What the option for the device's type is called.
    pub(super) fn device_type(&self) -> &'static str {
        if self.major < DEVICE_TYPE { "virtio_id" } else { "device_type" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_type_is_called_by_the_version() {
        let option = |line| Version::parse(line).map(|version| version.device_type());
        assert_eq!(option("cloud-hypervisor v52.0"), Some("virtio_id"));
        assert_eq!(option("cloud-hypervisor v53.0.0"), Some("device_type"));
        assert_eq!(option("cloud-hypervisor v54.0-12-gabc-dirty"), Some("device_type"));
        assert_eq!(option("cloud-hypervisor 100\n"), Some("device_type"));
        for other in ["QEMU emulator version 11.1.3", "cloud-hypervisor", "cloud-hypervisor new"] {
            assert_eq!(option(other), None, "{other}");
        }
    }

    #[test]
    fn another_program_or_an_old_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("link");
        std::os::unix::fs::symlink("/bin/sh", &binary).unwrap();
        let error = Version::of(&binary).unwrap_err();
        assert!(format!("{error:#}").contains("link"), "{error:#}");
        assert!(Version::parse("cloud-hypervisor v51.1").unwrap().major < FIRST);
    }
}
