// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian source packages, pinned by version and checksum.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::SetupEvent;
use super::apt::{Archive, PrivateApt, fraction_of_status_line, output, run_with_lines};

/// A file of a source package.
pub(crate) struct SourceFile {
    pub(crate) name: &'static str,
    pub(crate) sha256: &'static str,
}

/// A source package at a version.
pub(crate) struct SourcePackage {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// Where the archive has it.
    pub(crate) suite: &'static str,
    /// The file that describes the others.
    pub(crate) description: &'static str,
    /// All of its files.
    pub(crate) files: &'static [SourceFile],
}

/// Downloads the files of `package` into `folder`, as far as they are not there.
///
/// # Errors
/// When apt cannot reach the archive, it has this version no more, or a file is another one.
pub(crate) fn fetch(
    package: &SourcePackage,
    folder: &Path,
    events: &mut dyn FnMut(SetupEvent),
) -> Result<()> {
    if check(package, folder).is_ok() {
        return Ok(());
    }
    let SourcePackage { name, version, suite, .. } = package;
    events(SetupEvent::Step(format!("fetching the source of {name} {version}")));
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let apt_dir = folder.join("apt");
    let apt = PrivateApt::for_sources(&apt_dir, &Archive::of_this_machine()?, suite)?;
    download(&apt, package, folder, events).with_context(|| {
        format!("fetching the source of {name} {version} from Debian's {suite}")
    })?;
    check(package, folder)?;
    let _ = fs::remove_dir_all(&apt_dir);
    Ok(())
}

fn download(
    apt: &PrivateApt,
    package: &SourcePackage,
    folder: &Path,
    events: &mut dyn FnMut(SetupEvent),
) -> Result<()> {
    // Without it, apt takes an archive that does not answer for one without sources.
    output(apt.apt_get().args(["-q", "update", "-o", "APT::Update::Error-Mode=any"]))?;
    let mut fetch = apt.apt_get();
    fetch.args(["-q", "source", "--download-only", "-o", "APT::Status-Fd=1"]);
    fetch.arg(format!("{}={}", package.name, package.version)).current_dir(folder);
    run_with_lines(&mut fetch, &mut |line| {
        if let Some(fraction) = fraction_of_status_line(line) {
            events(SetupEvent::Progress { fraction });
        }
    })
}

/// Checks that all files are there, and that each is the one that was pinned.
fn check(package: &SourcePackage, folder: &Path) -> Result<()> {
    for SourceFile { name, sha256 } in package.files {
        let path = folder.join(name);
        let line = output(Command::new("sha256sum").arg(&path))?;
        let sum = line.split_whitespace().next().unwrap_or_default();
        ensure!(
            sum == *sha256,
            "the checksum of {name} is wrong (got {sum}, expected {sha256}): the archive has another \
             file under this version; use another mirror"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGE: SourcePackage = SourcePackage {
        name: "a",
        version: "1",
        suite: "sid",
        description: "a.dsc",
        files: &[SourceFile {
            name: "a.dsc",
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }],
    };

    #[test]
    fn only_the_pinned_file_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.dsc");
        check(&PACKAGE, folder.path()).unwrap_err();
        fs::write(&file, "abc").unwrap();
        check(&PACKAGE, folder.path()).unwrap();
        // What is there is not fetched.
        fetch(&PACKAGE, folder.path(), &mut |event| panic!("{event:?}")).unwrap();
        fs::write(&file, "abd").unwrap();
        let error = check(&PACKAGE, folder.path()).unwrap_err().to_string();
        assert!(error.contains("expected ba7816bf"), "{error}");
    }
}
