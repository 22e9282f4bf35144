// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The package for Fedora and its kin.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rpm::{
    BuildConfig, CompressionType, Dependency, FileMode, FileOptions, PackageBuilder, Scriptlet,
};

use super::about::{DESCRIPTION, MAINTAINER, NAME, Part, RELEASE, SUMMARY, VERSION};
use super::contents::{FOLDERS, Family, Kind, contents, read};
use super::{date, glibc};

const LICENSE: &str = "Apache-2.0 OR BSD-3-Clause";

/// Writes the package with these programs into `folder`; returns its path.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn write(programs: &[(Part, PathBuf)], folder: &Path) -> Result<PathBuf> {
    let seconds: u32 = date::seconds()?.try_into().context("the date of the sources")?;
    let config = BuildConfig::v4().source_date(seconds).compression(CompressionType::Gzip);
    let mut package = PackageBuilder::new(NAME, VERSION, LICENSE, "x86_64", SUMMARY);
    package.using_config(config).release(RELEASE).description(DESCRIPTION);
    package.packager(MAINTAINER);
    package.add_changelog_entry(
        format!("{MAINTAINER} - {VERSION}-{RELEASE}"),
        "- See CHANGELOG.md.gz.",
        seconds,
    );
    let items = contents(programs, Family::RedHat)?;
    for item in &items {
        let to = FileOptions::new(format!("/{}", item.path)).mode(FileMode::regular(item.mode()));
        let to = match item.kind {
            Kind::Config => to.config().noreplace(),
            Kind::Documentation => to.doc(),
            Kind::License => to.license(),
            Kind::Program | Kind::Plain => to,
        };
        if item.kind == Kind::Program
            && let Some((major, minor)) = glibc::needed(&item.bytes)
        {
            package.requires(Dependency::any(format!("libc.so.6(GLIBC_{major}.{minor})(64bit)")));
        }
        package.with_file_contents(item.bytes.as_slice(), to)?;
    }
    let own = [format!("/usr/share/doc/{NAME}"), format!("/usr/share/licenses/{NAME}")];
    for own in FOLDERS.iter().map(|folder| format!("/{folder}")).chain(own) {
        package.with_dir_entry(FileOptions::dir(own).mode(FileMode::dir(0o755)))?;
    }
    let script = |name: &str| -> Result<Scriptlet> {
        Ok(Scriptlet::new(String::from_utf8(read(&format!("packaging/rpm/{name}"))?)?))
    };
    package.post_install_script(script("post")?);
    package.pre_uninstall_script(script("preun")?);
    package.post_uninstall_script(script("postun")?);
    let path = folder.join(format!("{NAME}-{VERSION}-{RELEASE}.x86_64.rpm"));
    package.build()?.write_file(&path)?;
    Ok(path)
}
