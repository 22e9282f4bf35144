// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as one self-contained HTML file.

use std::fmt::Write;

use anyhow::Result;

use super::measure::Run;
use super::plot;
use super::table::{self, ROWS};
use super::{GuestKind, Options};

const STYLE: &str = "\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; \
color: #222; background: #fff }
svg { width: 100%; height: auto }
.scroll { overflow-x: auto }
table { border-collapse: collapse }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
code { background: #f3f3f3; padding: .1rem .3rem }";

/// The page.
///
/// # Errors
/// If a curve cannot be drawn.
pub(super) fn render(options: &Options, runs: &[Run]) -> Result<String> {
    let mut page = String::new();
    writeln!(page, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(page, "<title>A guest gives its memory back</title>\n<style>{STYLE}</style>")?;
    writeln!(page, "<h1>A guest gives its memory back</h1>")?;
    writeln!(
        page,
        "<p>{} fills memory and frees it, {} times. It reports free pages every two seconds; the \
         device gives them back to the host.</p>",
        options.guest.name(),
        options.rounds
    )?;
    for run in runs {
        writeln!(page, "<h2>{}</h2>\n<p>{}</p>", run.device, escape(&run.guest))?;
        writeln!(page, "{}", plot::svg(run)?)?;
    }
    writeln!(page, "<h2>Figures</h2>\n<div class=\"scroll\"><table>\n<tr><th>")?;
    for run in runs {
        writeln!(page, "<th>{}", run.device)?;
    }
    for row in ROWS {
        write!(page, "<tr><td>{}", row.name)?;
        for run in runs {
            write!(page, "<td>{}", escape(&(row.value)(run)))?;
        }
        writeln!(page)?;
    }
    writeln!(page, "</table></div>")?;
    if let [ours, qemu] = runs {
        writeln!(page, "<p>{}</p>", escape(&table::comparison(ours, qemu)))?;
    }
    let guest = if options.guest == GuestKind::Model { " --guest model" } else { "" };
    let compare = if options.compare { " --compare" } else { "" };
    writeln!(
        page,
        "<p>Again: <code>cargo xtask demo --memory {} --rounds {}{guest}{compare}</code>. The samples are \
         in <code>result.json</code> beside this page.</p>\n</html>",
        options.memory, options.rounds
    )?;
    Ok(page)
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
