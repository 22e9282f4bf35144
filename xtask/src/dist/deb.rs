// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The package for Debian and its kin, written by dpkg-deb.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::about::{DESCRIPTION, MAINTAINER, NAME, Part, RELEASE, SUMMARY, VERSION};
use super::contents::{Family, Item, Kind, contents, lay_out, read};
use super::{date, glibc};
use crate::cargo::run;

/// Scripts that dpkg runs around the installation and the removal.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// How dpkg-deb compresses.
#[derive(Clone, Copy)]
pub(super) enum Compression {
    /// Well.
    #[cfg_attr(
        not(feature = "packages"),
        allow(dead_code, reason = "the other build writes all packages")
    )]
    Xz,
    /// Not at all.
    None,
}

/// Writes the package with these programs into `folder`; returns its path.
///
/// # Errors
/// If a file cannot be written, or dpkg-deb is missing or refuses.
pub(super) fn write(
    programs: &[(Part, PathBuf)],
    folder: &Path,
    compression: Compression,
) -> Result<PathBuf> {
    let items = contents(programs, Family::Debian)?;
    let tree = tempfile::Builder::new().prefix("deb").tempdir_in(folder)?;
    fs::set_permissions(tree.path(), Permissions::from_mode(0o755))?;
    lay_out(&items, tree.path())?;
    let control = tree.path().join("DEBIAN");
    fs::create_dir(&control)?;
    fs::set_permissions(&control, Permissions::from_mode(0o755))?;
    let put = |name: &str, bytes: &[u8], mode| -> Result<()> {
        let path = control.join(name);
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(())
    };
    put("control", control_file(&items)?.as_bytes(), 0o644)?;
    let configs = items.iter().filter(|item| item.kind == Kind::Config);
    let configs: String = configs.map(|item| format!("/{}\n", item.path)).collect();
    put("conffiles", configs.as_bytes(), 0o644)?;
    put("md5sums", &sums(&items, tree.path())?, 0o644)?;
    for script in SCRIPTS {
        put(script, &read(&format!("packaging/debian/{script}"))?, 0o755)?;
    }
    let package = folder.join(format!("{NAME}_{VERSION}-{RELEASE}_amd64.deb"));
    let mut build = Command::new("dpkg-deb");
    build.arg(match compression {
        Compression::Xz => "-Zxz",
        Compression::None => "-Znone",
    });
    build.args(["--root-owner-group", "--build"]).args([tree.path(), &package]);
    run(build.env(date::VARIABLE, date::seconds()?.to_string()))?;
    Ok(package)
}

fn control_file(items: &[Item]) -> Result<String> {
    let programs = items.iter().filter(|item| item.kind == Kind::Program);
    let bytes: usize = items.iter().map(|item| item.bytes.len()).sum();
    let depends = match programs.filter_map(|program| glibc::needed(&program.bytes)).max() {
        Some((major, minor)) => format!("Depends: libc6 (>= {major}.{minor})\n"),
        None => String::new(),
    };
    let description = DESCRIPTION.replace('\n', "\n ");
    Ok(format!(
        "Package: {NAME}\nVersion: {VERSION}-{RELEASE}\nArchitecture: amd64\n\
         Maintainer: {MAINTAINER}\nInstalled-Size: {}\n{depends}\
         Recommends: systemd\nSuggests: qemu-system-x86, apparmor\n\
         Section: admin\nPriority: optional\nDescription: {SUMMARY}\n {description}\n",
        bytes.div_ceil(1024)
    ))
}

/// Checksums of all files but those that the operator may change.
fn sums(items: &[Item], tree: &Path) -> Result<Vec<u8>> {
    let files = items.iter().filter(|item| item.kind != Kind::Config).map(|item| &item.path);
    let output = Command::new("md5sum").args(files).current_dir(tree).output().context("md5sum")?;
    ensure!(output.status.success(), "md5sum: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
