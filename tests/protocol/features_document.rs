// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `docs/user/features.md` names a test for what it says of this device; each of them has to exist.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What holds sources.
const FOLDERS: [&str; 5] = ["src", "tests", "guest-driver", "vmm-integration", "xtask"];

/// The names of all functions below `folder` that `#[test]` marks.
fn tests_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() != "target" {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                match line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')) {
                    Some((name, _)) if marked => {
                        found.insert(name.to_owned());
                        marked = false;
                    }
                    Some(_) => marked = false,
                    None => marked |= line == "#[test]",
                }
            }
        }
    }
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn each_own_cell_names_existing_tests_or_says_no() {
    let mut tests = BTreeSet::new();
    FOLDERS.iter().for_each(|folder| tests_in(&Path::new(ROOT).join(folder), &mut tests));
    let page = fs::read_to_string(Path::new(ROOT).join("docs/user/features.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Feature"));
    let mut named = 0;
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, ours, _, _, _, _, _] = cells[..] else { panic!("expected seven columns: {row}") };
        for name in quoted(ours) {
            assert!(tests.contains(name), "there is no test {name}: {row}");
            named += 1;
        }
        let says_no = ours == "no" || ours.starts_with("no:") || ours.starts_with("Not tested");
        assert!(says_no || quoted(ours).next().is_some(), "nothing proves this: {row}");
    }
    assert!(named > 0, "no test is named in docs/user/features.md");
}
