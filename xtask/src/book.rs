// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask book`: the pages of `docs` as a book.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{root, target};
use crate::tools::Tool;

/// What builds the book.
const MDBOOK: Tool = Tool { name: "mdbook", version: "0.4.52" };

/// Builds the book into `target/book`.
///
/// # Errors
/// If mdbook cannot be built, or the book has an error.
pub(crate) fn build() -> Result<()> {
    let mdbook = MDBOOK.ensure()?;
    let book = target().join("book");
    let mut command = Command::new(mdbook);
    let output = command.arg("build").arg(root().join("docs")).arg("--dest-dir").arg(&book);
    let status = output.status().context("cannot start mdbook")?;
    ensure!(status.success(), "mdbook failed: {status}");
    println!("{}", book.join("index.html").display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files;

    #[test]
    fn summary_names_every_page_and_no_other() {
        let docs = root().join("docs");
        let summary = docs.join("SUMMARY.md");
        let mut found = files::with_extension("md").expect("the workspace can be listed");
        found.retain(|page| page.starts_with(&docs) && *page != summary);
        let text = fs::read_to_string(&summary).expect("the summary can be read");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let mut named: Vec<_> = links.map(|(link, _)| docs.join(link)).collect();
        named.sort();
        assert_eq!(named, found);
    }
}
