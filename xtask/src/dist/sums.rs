// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checksums, by which users tell that a file is the one that was built.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Where the checksums of a folder are, as `sha256sum --check` takes them.
#[cfg_attr(not(feature = "packages"), allow(dead_code, reason = "the other build writes it"))]
pub(super) const FILE: &str = "SHA256SUMS";

/// SHA-256 of `bytes`, in hexadecimal digits.
///
/// # Errors
/// If sha256sum is missing or fails.
pub(super) fn sha256(bytes: &[u8]) -> Result<String> {
    let mut command = Command::new("sha256sum");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start sha256sum")?;
    // It says nothing before it has read everything.
    child.stdin.take().context("sha256sum has no input")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "sha256sum: {}", output.status);
    let said = String::from_utf8(output.stdout)?;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
}

/// Writes the checksums of all files in `folder`.
///
/// # Errors
/// If one cannot be read.
#[cfg_attr(not(feature = "packages"), allow(dead_code, reason = "the other build writes it"))]
pub(super) fn write(folder: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name() != FILE {
            names.push(entry.file_name().into_string().ok().context("a name is no text")?);
        }
    }
    names.sort();
    let mut text = String::new();
    for name in names {
        text += &format!("{}  {name}\n", sha256(&fs::read(folder.join(&name))?)?);
    }
    let sums = folder.join(FILE);
    fs::write(&sums, text).with_context(|| sums.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_that_sha256sum_takes() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), "two").unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();
        write(folder.path()).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let names: Vec<&str> = text.lines().map(|line| &line[66..]).collect();
        assert_eq!(names, ["a", "b"]);
        let check = || {
            let mut check = Command::new("sha256sum");
            check.args(["--check", "--status", FILE]).current_dir(folder.path());
            check.status().unwrap().success()
        };
        assert!(check());
        fs::write(folder.path().join("b"), "three").unwrap();
        assert!(!check());
    }
}
