// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The programs as they are distributed: the same sources and toolchain make the same bytes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::about::Part;
use super::linked::{Id, Program};
use super::linking::Linking;
use crate::cargo::{cargo, root, target};

/// A program that was built.
pub(super) struct Release {
    pub(super) part: Part,
    pub(super) program: PathBuf,
    /// The packages that cargo compiled for it, besides those of this repository.
    pub(super) compiled: BTreeSet<Id>,
}

/// A line of cargo's messages.
#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// Builds the release of a program alone, without the names of its symbols: packages have none.
///
/// # Errors
/// If it does not build.
pub(super) fn build(part: Part, linking: Linking) -> Result<Release> {
    let triple = linking.target()?;
    let strip = ["--config", "profile.release.strip=\"symbols\""];
    let build = ["build", "--locked", "--release", "--package", part.name()];
    let mut command = cargo(&[&build[..], &strip].concat());
    // With a target of its own the flags are not those of macros and build scripts, which need libraries.
    command.args(["--target", triple, "--message-format", "json-render-diagnostics"]);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(part, linking)?.join("\x1f"));
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    let folder = target().join(triple).join("release");
    let compiled = compiled(&String::from_utf8(output.stdout)?, &folder)?;
    Ok(Release { part, program: folder.join(part.name()), compiled })
}

/// Flags of the compiler: paths of this machine are in no program, neither in its messages nor in what is derived
/// from them.
fn flags(part: Part, linking: Linking) -> Result<Vec<String>> {
    let program = Program::read(part)?;
    let packages: BTreeSet<&Path> =
        program.packages.iter().filter_map(|package| package.folder.parent()).collect();
    let (root, target) = (root(), target());
    // The last one that fits holds.
    let mut paths = vec![(root.as_path(), "/source"), (target.as_path(), "/target")];
    paths.extend(packages.into_iter().map(|folder| (folder, "/crates")));
    let mut flags = Vec::new();
    for (from, to) in paths {
        let from = from.to_str().with_context(|| format!("{} is no text", from.display()))?;
        flags.push(format!("--remap-path-prefix={from}={to}"));
    }
    if linking == Linking::Static {
        flags.push("-Ctarget-feature=+crt-static".to_owned());
    }
    Ok(flags)
}

/// The packages whose files are in `folder`, from messages of cargo. What runs while it builds is elsewhere.
fn compiled(messages: &str, folder: &Path) -> Result<BTreeSet<Id>> {
    let mut found = BTreeSet::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let is_linked = message.filenames.iter().any(|file| file.starts_with(folder));
        if message.reason != "compiler-artifact" || !is_linked {
            continue;
        }
        let package = message.package_id.context("a package without a name")?;
        if let Some(id) = package.strip_prefix("registry+").and_then(|id| id.split('#').nth(1)) {
            let (name, version) = id.split_once('@').with_context(|| package.clone())?;
            found.insert(Id { name: name.to_owned(), version: version.to_owned() });
        } else {
            ensure!(package.starts_with("path+"), "{package} is neither of crates.io nor ours");
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_for_the_host_are_not_linked() {
        let line = |package: &str, file: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"package_id\":\"{package}\",\
                 \"filenames\":[\"/t/{file}\"]}}\n"
            )
        };
        let index = "registry+https://example.org/index#";
        let messages = [
            line(&format!("{index}libc@0.2.1"), "triple/release/deps/liblibc-1.rlib"),
            line(&format!("{index}syn@2.0.0"), "release/deps/libsyn-1.rlib"),
            line("path+file:///s#vhost-device-balloon@0.1.0", "triple/release/vhost"),
            "{\"reason\":\"build-finished\",\"success\":true}\n".to_owned(),
        ];
        let folder = Path::new("/t/triple/release");
        let libc = Id { name: "libc".to_owned(), version: "0.2.1".to_owned() };
        assert_eq!(compiled(&messages.concat(), folder).unwrap(), BTreeSet::from([libc]));
        compiled(&line("git+https://example.org/a#a@1.0.0", "triple/release/a"), folder)
            .unwrap_err();
    }
}
