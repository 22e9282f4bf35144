// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The licenses of the crates that are linked into the programs: they ask for a copy of their text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};

use super::about::PARTS;
use super::linked::{Id, Linked, Program};

/// How names of files with a license begin.
const NAMES: [&str; 5] = ["LICEN", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"];

/// Returns a list of the crates with their licenses, then each text once.
///
/// # Errors
/// If cargo does not say what is linked, or a crate names no license.
pub(super) fn of_what_is_linked() -> Result<String> {
    let mut text = String::new();
    let mut packages = BTreeMap::new();
    for part in PARTS {
        let linked = Program::read(part)?.packages;
        let names: Vec<_> =
            linked.iter().map(|Linked { id, .. }| format!("{} {}", id.name, id.version)).collect();
        let _ = write!(
            text,
            "{} is linked with the standard library of Rust (MIT OR Apache-2.0, \
             https://github.com/rust-lang/rust)\nand with these crates from https://crates.io: \
             {}\n\n",
            part.name(),
            names.join(", ")
        );
        packages.extend(linked.into_iter().map(|package| (package.id.clone(), package)));
    }
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.into_values() {
        let Linked { id: Id { name, version }, license, folder, .. } = package;
        let _ = writeln!(text, "{name} {version}: {license}");
        for file in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_crates_are_listed_with_their_licenses() {
        let text = of_what_is_linked().unwrap();
        let (list, texts) = text.split_once("\n-----").unwrap();
        assert!(list.contains("\nvhost-user-backend 0.24.0: Apache-2.0\n"), "{list}");
        assert!(list.contains("\ntokio ") && list.contains("host is linked with"), "{list}");
        assert!(texts.contains("Permission is hereby granted, free of charge"), "{texts}");
        // Macros, what only tests use or have other packages use, and ourselves.
        let others =
            ["serde_derive", "proptest", "regex", "vhost-device-balloon 0", "guest-driver"];
        for other in others {
            assert!(!list.contains(&format!("\n{other}")), "{other}: {list}");
        }
    }
}
