// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a package holds, and where.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::about::{NAME, Part};
use super::gzip::gzip;
use super::linking::Linking;
use super::{changelog, completions, date, licenses, man, sbom};
use crate::cargo::root;
use anyhow::{Context, Result};

/// Whose paths a package has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `.deb`.
    Debian,
    /// `.rpm`.
    #[cfg_attr(
        not(feature = "packages"),
        allow(dead_code, reason = "the other build writes all packages")
    )]
    RedHat,
}

/// What a file is to the package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Program,
    Plain,
    /// The operator may change it.
    Config,
    Documentation,
    License,
}

/// A file of a package.
pub(super) struct Item {
    /// Where it is installed, without the first slash.
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
    pub(super) kind: Kind,
}

/// Folders of the package that are its own and hold nothing.
pub(super) const FOLDERS: [&str; 1] = ["etc/vhost-device-balloon"];

/// Files of this repository, and where they are installed.
const FILES: [(&str, &str); 11] = [
    ("grafana/balloon.json", "usr/share/doc/vhost-device-balloon/grafana-board.json"),
    ("prometheus/alerts.yml", "usr/share/doc/vhost-device-balloon/alerts.yml"),
    ("openapi.json", "usr/share/doc/vhost-device-balloon/openapi.json"),
    // Management software finds backends there (vhost-user.json of QEMU).
    ("50-vhost-device-balloon.json", "usr/share/qemu/vhost-user/50-vhost-device-balloon.json"),
    (
        "systemd/vhost-device-balloon@.service",
        "usr/lib/systemd/system/vhost-device-balloon@.service",
    ),
    ("systemd/vhost-device-balloon@.socket", "usr/lib/systemd/system/vhost-device-balloon@.socket"),
    (
        "systemd/vhost-device-balloon-control@.socket",
        "usr/lib/systemd/system/vhost-device-balloon-control@.socket",
    ),
    (
        "systemd/vhost-device-balloon-hostd.service",
        "usr/lib/systemd/system/vhost-device-balloon-hostd.service",
    ),
    ("systemd/vhost-device-balloon.sysusers", "usr/lib/sysusers.d/vhost-device-balloon.conf"),
    ("systemd/vhost-device-balloon.tmpfiles", "usr/lib/tmpfiles.d/vhost-device-balloon.conf"),
    ("apparmor/vhost-device-balloon", "etc/apparmor.d/vhost-device-balloon"),
];

impl Item {
    fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>, kind: Kind) -> Self {
        Self { path: path.into(), bytes: bytes.into(), kind }
    }

    /// Permissions of the file.
    pub(super) fn mode(&self) -> u16 {
        if self.kind == Kind::Program { 0o755 } else { 0o644 }
    }
}

/// Everything in the package with these programs.
///
/// # Errors
/// If something cannot be read or written.
pub(super) fn contents(programs: &[(Part, PathBuf)], family: Family) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for (part, path) in programs {
        of_program(*part, path, family, &mut items)?;
    }
    for (file, path) in FILES {
        let kind = match path.split('/').nth(2) {
            Some("doc") => Kind::Documentation,
            _ if path.starts_with("etc/") => Kind::Config,
            _ => Kind::Plain,
        };
        items.push(Item::new(path, read(&format!("packaging/{file}"))?, kind));
    }
    documentation(family, &mut items)?;
    items.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(items)
}

/// A program, its bill of materials, and what is derived from its command line.
fn of_program(part: Part, path: &Path, family: Family, items: &mut Vec<Item>) -> Result<()> {
    let (name, command) = (part.name(), part.command());
    let program = fs::read(path).with_context(|| path.display().to_string())?;
    let bill = sbom::of(part, &program, Linking::Dynamic)?;
    items.push(Item::new(format!("usr/bin/{name}"), program, Kind::Program));
    let to = format!("usr/share/doc/{NAME}/{}", sbom::file(part));
    items.push(Item::new(to, bill, Kind::Documentation));
    for script in completions::scripts(&command)? {
        let path = match family {
            Family::Debian => script.path.replace("site-functions", "vendor-completions"),
            Family::RedHat => script.path,
        };
        items.push(Item::new(format!("usr/{path}"), script.text, Kind::Plain));
    }
    for page in man::pages(&command, &date::day()?)? {
        let path = format!("usr/share/man/man1/{}.gz", page.file);
        items.push(Item::new(path, gzip(page.text.as_bytes())?, Kind::Documentation));
    }
    Ok(())
}

fn documentation(family: Family, items: &mut Vec<Item>) -> Result<()> {
    let doc = format!("usr/share/doc/{NAME}");
    let readme = read("README.md")?;
    items.push(Item::new(format!("{doc}/README.md"), readme, Kind::Documentation));
    let changes = gzip(&read("CHANGELOG.md")?)?;
    let linked = gzip(licenses::of_what_is_linked()?.as_bytes())?;
    match family {
        Family::Debian => {
            let packaging = changelog::debian()?;
            items.push(Item::new(
                format!("{doc}/changelog.Debian.gz"),
                gzip(packaging.as_bytes())?,
                Kind::Documentation,
            ));
            items.push(Item::new(format!("{doc}/changelog.gz"), changes, Kind::Documentation));
            items.push(Item::new(
                format!("{doc}/copyright"),
                read("packaging/debian/copyright")?,
                Kind::License,
            ));
            items.push(Item::new(format!("{doc}/licenses-of-crates.gz"), linked, Kind::License));
        }
        Family::RedHat => {
            items.push(Item::new(format!("{doc}/CHANGELOG.md.gz"), changes, Kind::Documentation));
            let own = format!("usr/share/licenses/{NAME}");
            for file in ["LICENSE-APACHE", "LICENSE-BSD-3-Clause"] {
                items.push(Item::new(format!("{own}/{file}"), read(file)?, Kind::License));
            }
            items.push(Item::new(format!("{own}/licenses-of-crates.gz"), linked, Kind::License));
        }
    }
    Ok(())
}

/// Writes the items below `folder` as they are installed below `/`.
///
/// # Errors
/// If one cannot be written.
pub(super) fn lay_out(items: &[Item], folder: &Path) -> Result<()> {
    for own in FOLDERS {
        make(&folder.join(own))?;
    }
    for item in items {
        let path = folder.join(&item.path);
        path.parent().map_or(Ok(()), make)?;
        fs::write(&path, &item.bytes)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(item.mode().into())))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Makes a folder that all may read, whatever the umask is.
fn make(folder: &Path) -> Result<()> {
    let missing: Vec<PathBuf> =
        folder.ancestors().take_while(|above| !above.exists()).map(Path::to_owned).collect();
    for folder in missing.iter().rev() {
        fs::create_dir(folder)
            .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(())
}

/// Reads a file of this repository.
pub(super) fn read(file: &str) -> Result<Vec<u8>> {
    let path = root().join(file);
    fs::read(&path).with_context(|| path.display().to_string())
}
