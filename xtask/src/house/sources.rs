// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every source file keeps: its license, and a size that fits in a head.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

const LICENSE: &str = "// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause";
const MOST_LINES: usize = 450;

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
    long.into_iter().chain(bare.then(|| format!("the first line is not `{LICENSE}`"))).collect()
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
}
