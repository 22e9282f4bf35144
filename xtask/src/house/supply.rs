// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What cargo lets pass without a word, and CI has no cargo-deny for: packages that do not come from crates.io,
//! and what is linked into the daemon against the lists of `deny.toml`, without its exceptions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::audit::WORKSPACES;
use crate::cargo::root;
use crate::dist::about::Part;
use crate::dist::linked::{Id, Program};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What two versions of are linked, until vmm-sys-util moves on.
const LINKED_TWICE: [&str; 1] = ["bitflags"];

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    source: Option<String>,
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
}

/// # Errors
/// If a package of a workspace comes from elsewhere.
pub(super) fn check_sources() -> Result<()> {
    for manifest in WORKSPACES {
        let lock = root().join(manifest).with_file_name("Cargo.lock");
        let text = fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
        sources(&text).with_context(|| lock.display().to_string())?;
    }
    Ok(())
}

fn sources(lock: &str) -> Result<()> {
    let lock: Lock = toml::from_str(lock)?;
    for Locked { name, source, checksum } in lock.package {
        // Those of the repository itself have none.
        let Some(source) = source else { continue };
        ensure!(source == CRATES_IO, "{name} comes from {source}, expected crates.io");
        ensure!(checksum.is_some_and(|sum| sum.len() == 64), "{name} has no checksum");
    }
    Ok(())
}

/// # Errors
/// If a package that is linked into the daemon breaks a rule.
pub(super) fn check_linked() -> Result<()> {
    let text = fs::read_to_string(root().join("deny.toml")).context("deny.toml")?;
    let rules: Rules = toml::from_str(&text).context("deny.toml")?;
    let packages = Program::read(Part::Daemon)?.packages;
    linked(&rules, packages.iter().map(|package| (&package.id, &*package.license)))
}

fn linked<'a>(rules: &Rules, packages: impl Iterator<Item = (&'a Id, &'a str)>) -> Result<()> {
    let mut versions: BTreeMap<&str, u32> = BTreeMap::new();
    for (Id { name, .. }, license) in packages {
        *versions.entry(name).or_default() += 1;
        ensure!(rules.bans.deny.iter().all(|ban| ban.name != *name), "{name} is banned");
        ensure!(
            is_allowed(license, &rules.licenses.allow)?,
            "{name}: no license of {license:?} is on the list of deny.toml"
        );
    }
    let twice: Vec<&str> =
        versions.iter().filter(|(_, count)| **count > 1).map(|(name, _)| *name).collect();
    ensure!(twice == LINKED_TWICE, "linked twice: {twice:?}, expected {LINKED_TWICE:?}");
    Ok(())
}

/// Whether an expression of SPDX without parentheses can be met.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> Result<bool> {
    if expression.contains(['(', ')']) {
        bail!("{expression:?} has parentheses, which this check does not know");
    }
    let expression = expression.replace('/', " OR ");
    Ok(expression
        .split(" OR ")
        .any(|choice| choice.split(" AND ").all(|license| allowed.contains(license.trim()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> Id {
        Id { name: name.to_owned(), version: version.to_owned() }
    }

    #[test]
    fn packages_from_elsewhere_are_refused() {
        let sum = "0".repeat(64);
        let lock = |source: &str, sum: &str| {
            format!("[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n{source}{sum}")
        };
        let from = |source: &str| format!("source = \"{source}\"\n");
        let sum = format!("checksum = \"{sum}\"\n");
        sources(&lock("", "")).unwrap();
        sources(&lock(&from(CRATES_IO), &sum)).unwrap();
        for other in [
            lock(&from(CRATES_IO), ""),
            lock(&from("git+https://example.org/a#0123"), ""),
            lock(&from("registry+https://example.org/index"), &sum),
        ] {
            sources(&other).unwrap_err();
        }
    }

    #[test]
    fn linked_packages_that_break_a_rule_are_refused() {
        let rules: Rules = toml::from_str(
            "licenses.allow = [\"MIT\", \"Apache-2.0\"]\nbans.deny = [{ crate = \"openssl\" }]",
        )
        .unwrap();
        let bitflags =
            [(id("bitflags", "1.0.0"), "MIT/Apache-2.0"), (id("bitflags", "2.0.0"), "MIT")];
        let with = |name: &str, license: &'static str| {
            let other = (id(name, "1.0.0"), license);
            let packages: Vec<_> = bitflags.iter().chain([&other]).cloned().collect();
            linked(&rules, packages.iter().map(|(id, license)| (id, *license)))
        };
        with("other", "GPL-2.0-only OR MIT").unwrap();
        with("other", "MIT AND Apache-2.0").unwrap();
        for (name, license) in [
            ("other", "GPL-2.0-only"),
            ("other", "MIT AND GPL-2.0-only"),
            ("other", "(MIT OR GPL-2.0-only) AND Zlib"),
            ("openssl", "MIT"),
        ] {
            with(name, license).unwrap_err();
        }
        // A second version of another package, and one that is no longer there.
        let thrice = [(id("a", "1.0.0"), "MIT"), (id("a", "2.0.0"), "MIT")];
        let packages = bitflags.iter().chain(&thrice).map(|(id, license)| (id, *license));
        linked(&rules, packages).unwrap_err();
        linked(&rules, bitflags[..1].iter().map(|(id, license)| (id, *license))).unwrap_err();
    }
}
