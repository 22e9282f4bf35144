// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The licenses of the crates that are linked into the daemon: they ask for a copy of their text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::about::NAME;
use crate::cargo::cargo;

/// How names of files with a license begin.
const NAMES: [&str; 5] = ["LICEN", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

/// Returns a list of the crates with their licenses, then each text once.
///
/// # Errors
/// If cargo does not say what is linked, or a crate names no license.
pub(super) fn of_what_is_linked() -> Result<String> {
    let target = "x86_64-unknown-linux-gnu";
    let args = ["metadata", "--locked", "--format-version", "1", "--filter-platform", target];
    let output = cargo(&args).output().context("cargo metadata")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;

    let mut text = format!(
        "{NAME} is linked with the standard library of Rust (MIT OR Apache-2.0, \
         https://github.com/rust-lang/rust)\nand with these crates from https://crates.io:\n\n"
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked(&metadata)? {
        let Package { name, version, license, .. } = package;
        let license = license.as_ref().with_context(|| format!("{name} names no license"))?;
        let _ = writeln!(text, "{name} {version}: {license}");
        let folder = Path::new(&package.manifest_path).parent().context("no folder")?;
        for file in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let file = file?;
            let is_license = file.file_name().to_string_lossy().to_uppercase();
            if file.file_type()?.is_file() && NAMES.iter().any(|name| is_license.starts_with(name))
            {
                let license = fs::read_to_string(file.path())
                    .with_context(|| file.path().display().to_string())?;
                let of = format!("{name} {version}");
                texts.entry(license.trim().to_owned()).or_default().push(of);
            }
        }
    }
    for (license, of) in texts {
        let _ = write!(text, "\n{}\n{}\n\n{license}\n", "-".repeat(78), of.join(", "));
    }
    Ok(text)
}

/// The crates that are in the program, by name: neither what tests or builds it, nor macros.
fn linked(metadata: &Metadata) -> Result<Vec<&Package>> {
    let packages: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package)).collect();
    let nodes: BTreeMap<_, _> =
        metadata.resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let own = metadata.packages.iter().find(|package| package.name == NAME);
    let mut next = vec![&own.with_context(|| format!("cargo knows no {NAME}"))?.id];
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    while let Some(id) = next.pop() {
        let package = packages.get(id).with_context(|| format!("cargo knows no {id}"))?;
        let is_macro = |target: &Target| target.kind.iter().any(|kind| kind == "proc-macro");
        if !seen.insert(id) || package.targets.iter().any(is_macro) {
            continue;
        }
        if package.name != NAME {
            found.push(*package);
        }
        let node = nodes.get(id).with_context(|| format!("cargo resolves no {id}"))?;
        let normal = |edge: &&Edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none());
        next.extend(node.deps.iter().filter(normal).map(|edge| &edge.pkg));
    }
    found.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_crates_are_listed_with_their_licenses() {
        let text = of_what_is_linked().unwrap();
        let (list, texts) = text.split_once("\n-----").unwrap();
        assert!(list.contains("\nvhost-user-backend 0.24.0: Apache-2.0\n"), "{list}");
        assert!(texts.contains("Permission is hereby granted, free of charge"), "{texts}");
        // Macros, what only tests use, and ourselves.
        for other in ["serde_derive", "proptest", "vhost-device-balloon 0", "guest-driver"] {
            assert!(!list.contains(&format!("\n{other}")), "{other}: {list}");
        }
    }
}
