// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Circles of imports: files that name each other's items, directly or through others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::modules::Crate;

/// Checks every crate of these sources.
///
/// # Errors
/// If a file cannot be read, or files are in a circle.
pub(super) fn check(sources: &[PathBuf]) -> Result<()> {
    let mut all = Vec::new();
    for root in sources.iter().filter(|path| is_root(path)) {
        all.extend(circles(&Crate::read(root)?.edges()));
    }
    let lines: Vec<String> = all
        .iter()
        .map(|circle| {
            let names: Vec<_> = circle.iter().map(|path| path.display().to_string()).collect();
            names.join("\n    ")
        })
        .collect();
    ensure!(
        all.is_empty(),
        "{} circles of imports:\n    {}",
        all.len(),
        lines.join("\n  and\n    ")
    );
    Ok(())
}

/// Whether a crate begins with this file.
fn is_root(path: &Path) -> bool {
    let mut names = path.iter().rev().map(|name| name.to_str().unwrap_or_default());
    let (file, folder, above) = (names.next(), names.next(), names.next());
    match (folder, file) {
        (Some("src"), Some("main.rs" | "lib.rs")) => true,
        (Some("tests" | "benches" | "bin"), _) => path.with_extension("").extension().is_none(),
        (_, Some("main.rs")) => matches!(above, Some("tests" | "benches")),
        _ => false,
    }
}

/// The sets of files that each lead to all others of their set.
fn circles(edges: &BTreeSet<(PathBuf, PathBuf)>) -> Vec<BTreeSet<PathBuf>> {
    let mut next: BTreeMap<&PathBuf, Vec<&PathBuf>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    let reached = |from| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(next.get(file).into_iter().flatten().filter(|to| seen.insert(**to)));
        }
        seen
    };
    let reach: BTreeMap<_, _> = next.keys().map(|file| (*file, reached(*file))).collect();
    let mut found = Vec::<BTreeSet<PathBuf>>::new();
    for (file, there) in reach.iter().filter(|(file, there)| there.contains(**file)) {
        if !found.iter().any(|circle| circle.contains(*file)) {
            let back =
                there.iter().filter(|other| reach.get(**other).is_some_and(|r| r.contains(file)));
            found.push(back.map(|other| (*other).clone()).collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The names of the files in circles of a crate with these files.
    fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let edges = Crate::read(&folder.path().join("lib.rs")).expect("a crate").edges();
        let name = |path: &PathBuf| {
            path.strip_prefix(folder.path()).expect("inside").display().to_string()
        };
        circles(&edges).iter().map(|circle| circle.iter().map(name).collect()).collect()
    }

    #[test]
    fn files_that_name_each_other_are_a_circle() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::B; pub struct A(B);"),
            ("b.rs", "pub struct B; fn f() { let _ = vec![super::c::C]; }"),
            ("c.rs", "pub struct C; fn f(_: &crate::a::A) {}"),
        ]);
        assert_eq!(found, [["a.rs", "b.rs", "c.rs"]]);
    }

    #[test]
    fn reexport_leads_to_the_declaring_file() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "mod inner; pub use inner::*;"),
            ("a/inner.rs", "use crate::b::{self}; pub struct A; fn f() { b::g(); }"),
            ("b.rs", "use crate::a::A; pub fn g() {} fn h(_: A) {}"),
        ];
        assert_eq!(circles_of(&files), [["a/inner.rs", "b.rs"]]);
    }

    #[test]
    fn parts_of_a_type_and_tests_are_no_circle() {
        let found = circles_of(&[
            ("lib.rs", "mod a;"),
            ("a.rs", "mod part; use part::P; pub struct A(P); #[cfg(test)] mod tests;"),
            ("a/part.rs", "use super::A; pub struct P; impl A {}"),
            ("a/tests.rs", "use super::*;"),
        ]);
        assert_eq!(found, [[""; 0]; 0]);
    }

    #[test]
    fn child_that_only_names_its_parent_is_a_circle() {
        let found = circles_of(&[
            ("lib.rs", "mod a;"),
            ("a.rs", "mod part; use part::P; pub struct A(P);"),
            ("a/part.rs", "use super::A; pub struct P; fn f(_: &A) {}"),
        ]);
        assert_eq!(found, [["a/part.rs", "a.rs"]]);
    }
}
