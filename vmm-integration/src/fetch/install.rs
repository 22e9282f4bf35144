// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has dpkg configure unpacked packages, so that a folder becomes an installation.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use super::SetupEvent;
use super::apt::run_with_lines;

/// The packages' folder in the installation, while they are installed.
const PACKAGES: &str = "packages";

/// What dpkg reads there: no pages, translations or documents.
const CONFIGURATION: &str = "\
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
force-unsafe-io
";

/// Installs `files` in `root`, into which they have been unpacked, by the dpkg among them. That is the
/// way of debootstrap: dpkg runs on what is unpacked, and says so to itself.
pub(super) fn install_packages(
    root: &Path,
    files: &[PathBuf],
    events: &mut dyn FnMut(SetupEvent),
) -> Result<()> {
    let packages = root.join(PACKAGES);
    let prepare = || {
        fs::create_dir(&packages)?;
        fs::write(root.join("etc/dpkg/dpkg.cfg.d/test"), CONFIGURATION)?;
        // Nothing is started while it is installed.
        fs::write(root.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")
    };
    prepare().with_context(|| format!("preparing {}", root.display()))?;
    let mut names = Vec::new();
    for file in files {
        let name = file.file_name().with_context(|| format!("no name: {}", file.display()))?;
        fs::copy(file, packages.join(name))
            .with_context(|| format!("copying {}", file.display()))?;
        names.push(Path::new("/").join(PACKAGES).join(name).into_os_string());
    }
    events(SetupEvent::Step(format!("installing {} packages", files.len())));
    let dpkg = |arguments: &[OsString]| {
        // Mounts end with the process.
        let script = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" dpkg \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(root).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        run_with_lines(&mut command, &mut |_| {})
    };
    let mut unpack: Vec<OsString> = ["--unpack", "--force-all"].map(OsString::from).into();
    unpack.extend(names);
    dpkg(&unpack)?;
    dpkg(&["--configure", "-a"].map(OsString::from))?;
    let clean = || {
        fs::remove_dir_all(&packages)?;
        fs::remove_file(root.join("usr/sbin/policy-rc.d"))
    };
    clean().map_err(|error| anyhow!("cleaning {}: {error}", root.display()))
}
