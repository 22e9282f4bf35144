// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The packages that are linked into a program: neither what tests or builds it, nor macros.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::about::Part;
use crate::cargo::{cargo, root};

/// What packages are built for, as far as it matters for what is linked.
pub(super) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A package in one version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// A package that is linked.
pub(crate) struct Linked {
    pub(crate) id: Id,
    /// An expression of SPDX.
    pub(crate) license: String,
    pub(super) description: Option<String>,
    pub(super) repository: Option<String>,
    /// SHA-256 of the archive on crates.io.
    pub(super) checksum: String,
    /// Where the sources are.
    pub(super) folder: PathBuf,
    /// Those of the linked packages that it uses.
    pub(super) uses: BTreeSet<Id>,
}

/// What a program is linked of.
pub(crate) struct Program {
    /// What the program itself uses, and what other packages of this repository in it use.
    pub(super) uses: BTreeSet<Id>,
    /// All packages, by name.
    pub(crate) packages: Vec<Linked>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    description: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Program {
    /// Asks cargo, for the features with which the program is built alone: in a build of the whole workspace some
    /// packages have more of them, and so use other packages.
    ///
    /// # Errors
    /// If cargo does not say it, or a package names no license or has no checksum.
    pub(crate) fn read(part: Part) -> Result<Self> {
        let edges = tree(part.name())?;
        let mut known = metadata()?;
        let checksums = checksums()?;
        // Those of this repository have none.
        let (edges, own): (BTreeMap<_, _>, BTreeMap<_, _>) =
            edges.into_iter().partition(|(id, _)| checksums.contains_key(id));
        ensure!(own.keys().any(|id| id.name == part.name()), "cargo knows no {}", part.name());
        let uses = own.values().flatten().filter(|id| !own.contains_key(*id)).cloned().collect();
        let mut packages = Vec::new();
        for (id, uses) in edges {
            let Id { name, version } = &id;
            let package =
                known.remove(&id).with_context(|| format!("cargo knows no {name} {version}"))?;
            let license = package.license.with_context(|| format!("{name} names no license"))?;
            let checksum = checksums.get(&id).with_context(|| format!("{name} has no checksum"))?;
            let folder = package.manifest_path.parent().context("no folder")?.to_owned();
            let Package { description, repository, .. } = package;
            let checksum = checksum.clone();
            packages.push(Linked { id, license, description, repository, checksum, folder, uses });
        }
        Ok(Self { uses, packages })
    }
}

/// Each package with what it uses.
fn tree(name: &str) -> Result<BTreeMap<Id, BTreeSet<Id>>> {
    let args = ["tree", "--locked", "--package", name, "--edges", "normal,no-proc-macro"];
    let form = ["--target", TARGET, "--prefix", "depth", "--no-dedupe", "--format", " {p}"];
    let text = said_by_cargo(&[&args[..], &form].concat())?;
    let mut edges: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    // The packages between the daemon and that of the line.
    let mut above: Vec<Id> = Vec::new();
    for line in text.lines() {
        let [depth, name, version] = line.split(' ').take(3).collect::<Vec<_>>()[..] else {
            anyhow::bail!("cargo tree says: {line}");
        };
        let version = version.strip_prefix('v').context("no version")?;
        let id = Id { name: name.to_owned(), version: version.to_owned() };
        above.truncate(depth.parse().with_context(|| line.to_owned())?);
        if let Some(user) = above.last() {
            edges.entry(user.clone()).or_default().insert(id.clone());
        }
        edges.entry(id.clone()).or_default();
        above.push(id);
    }
    Ok(edges)
}

fn metadata() -> Result<BTreeMap<Id, Package>> {
    let args = ["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET];
    let metadata: Metadata =
        serde_json::from_str(&said_by_cargo(&args)?).context("cargo metadata")?;
    let packages = metadata.packages.into_iter();
    Ok(packages
        .map(|package| {
            let id = Id { name: package.name.clone(), version: package.version.clone() };
            (id, package)
        })
        .collect())
}

fn checksums() -> Result<BTreeMap<Id, String>> {
    let path = root().join("Cargo.lock");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lock: Lock = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let locked = lock.package.into_iter();
    let sums = locked.filter_map(|package| {
        let id = Id { name: package.name, version: package.version };
        package.checksum.map(|checksum| (id, checksum))
    });
    Ok(sums.collect())
}

fn said_by_cargo(args: &[&str]) -> Result<String> {
    let output = cargo(args).output().with_context(|| format!("cargo {}", args[0]))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).with_context(|| format!("cargo {}", args[0]))
}
