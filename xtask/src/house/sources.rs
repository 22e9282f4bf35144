// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every source file keeps: its license, a size that fits in a head, and short names of tests.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

const LICENSE: &str = "// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause";
const MOST_LINES: usize = 450;
const MOST_NAME: usize = 50;

/// Checks each of these files.
///
/// # Errors
/// If one cannot be read, or breaks a rule.
pub(super) fn check(sources: &[PathBuf]) -> Result<()> {
    let mut wrong = Vec::new();
    for path in sources {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        wrong.extend(problems(&text).into_iter().map(|why| format!("{}: {why}", path.display())));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn problems(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    let long =
        (lines > MOST_LINES).then(|| format!("{lines} lines, expected at most {MOST_LINES}"));
    let bare = text.lines().next() != Some(LICENSE);
    let names = test_names(text).filter(|name| name.len() > MOST_NAME);
    let names = names.map(|name| {
        format!("the test `{name}` has {} characters, expected at most {MOST_NAME}", name.len())
    });
    let bare = bare.then(|| format!("the first line is not `{LICENSE}`"));
    long.into_iter().chain(bare).chain(names).collect()
}

fn test_names(text: &str) -> impl Iterator<Item = &str> {
    let tests = text.split("#[test]\n").skip(1);
    tests.filter_map(|test| Some(test.split_once("fn ")?.1.split_once('(')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_file_and_missing_license_are_problems() {
        let file = |lines| format!("{LICENSE}\n{}", "\n".repeat(lines - 1));
        assert_eq!(problems(&file(MOST_LINES)), [""; 0]);
        assert_eq!(problems(&file(MOST_LINES + 1)).len(), 1);
        assert_eq!(problems("//! No license.\n").len(), 1);
    }

    #[test]
    fn long_test_name_is_a_problem() {
        let test = |len| format!("{LICENSE}\n#[test]\n#[ignore]\nfn {}() {{}}\n", "x".repeat(len));
        assert_eq!(problems(&test(MOST_NAME)), [""; 0]);
        assert_eq!(problems(&test(MOST_NAME + 1)).len(), 1);
    }
}
