// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Links of Markdown pages to files and headings of this repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Checks the links of these pages. Links to other sites are not followed.
///
/// # Errors
/// If a page cannot be read, or a link leads nowhere.
pub(super) fn check(pages: &[PathBuf]) -> Result<()> {
    let mut wrong = Vec::new();
    for page in pages {
        let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
        for link in targets(&text).into_iter().filter(|link| !leads_somewhere(page, &text, link)) {
            wrong.push(format!("{}: no such place: {link}", page.display()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The text without code blocks and code spans.
fn prose(text: &str) -> String {
    let blocks = text.split("\n```").step_by(2);
    blocks.map(|block| block.split('`').step_by(2).collect::<String>() + "\n").collect()
}

/// What the links of a page lead to, those in the style of references included.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let references = prose.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    inline.chain(references.map(|(_, to)| to)).map(|to| to.trim().to_owned()).collect()
}

fn leads_somewhere(page: &Path, text: &str, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return true;
    }
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let path = page.with_file_name(file);
    if heading.is_empty() {
        return path.exists();
    }
    let other = if file.is_empty() { Some(text.to_owned()) } else { fs::read_to_string(path).ok() };
    other.is_some_and(|other| anchors(&other).iter().any(|anchor| anchor == heading))
}

/// The anchors of the headings, as GitHub and mdbook make them.
fn anchors(text: &str) -> Vec<String> {
    let blocks = text.split("\n```").step_by(2);
    let headings = blocks.flat_map(str::lines).filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let name = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        name.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_and_headings_are_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = folder.path().join("page.md");
        let text = "# Use `it`, now\n[a](other.md) [b](other.md#two-words) [c](#use-it-now) \
                    [d](https://example.org/x) [e][ref]\n\n[ref]: other.md\n`[no](code.md)`\n\
                    ```\n[no](block.md)\n```\n";
        fs::write(folder.path().join("other.md"), "## Two words\n").expect("a file");
        let wrong = |text: &str| -> Vec<String> {
            targets(text).into_iter().filter(|link| !leads_somewhere(&page, text, link)).collect()
        };
        assert_eq!(wrong(text), [""; 0]);
        assert_eq!(targets(text).len(), 5);
        for link in ["gone.md", "other.md#gone", "#gone"] {
            assert_eq!(wrong(&format!("[x]({link})")), [link]);
        }
        assert_eq!(wrong("[x][r]\n\n[r]: gone.md\n"), ["gone.md"]);
    }
}
