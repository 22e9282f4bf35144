// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as one self-contained HTML file, and their picture as an SVG file.

use charts::{Chart, Line, STYLE};
use maud::{DOCTYPE, PreEscaped, html};

use super::options::{GuestKind, Options};
use super::run::{Device, Run, mib};
use super::table::{self, ROWS};

const TITLE: &str = "The host reclaims a guest's free memory";
const PAGE_STYLE: &str = "\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; \
color: var(--fg); background: var(--bg) }
svg { width: 100%; max-width: 34rem; height: auto }
.scroll { overflow-x: auto }
table { border-collapse: collapse }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left }
code { background: var(--card); padding: .1rem .3rem }";

type Points = Vec<(f64, f64)>;

/// The memory that the guest uses, in MiB over seconds.
fn used(run: &Run) -> Points {
    run.curve.iter().filter_map(|s| Some((s.seconds, mib(s.guest_used_bytes?)))).collect()
}

/// The guest's resident memory on the host, in MiB over seconds.
fn resident(run: &Run) -> Points {
    run.curve.iter().map(|s| (s.seconds, mib(s.host_resident_bytes))).collect()
}

fn chart<'a>(title: String, curves: &'a [(&str, Points)]) -> Chart<'a> {
    let line = |(style, (name, points)): (usize, &'a (&str, Points))| Line {
        name: (*name).to_owned(),
        points,
        style,
        computed: false,
    };
    let lines = curves.iter().enumerate().map(line).collect();
    Chart { title, x_unit: "s", y_unit: "MiB", lines, range: Vec::new() }
}

/// The picture as an SVG file: resident memory with the daemon and without a device.
pub(super) fn picture(runs: &[Run]) -> Option<String> {
    let of = |device| runs.iter().find(|run| run.device == device);
    let (with, without) = (of(Device::Daemon)?, of(Device::None)?);
    let curves = [
        ("in use by the guest", used(with)),
        ("resident on the host", resident(with)),
        ("resident on the host without the daemon", resident(without)),
    ];
    let title = format!("{TITLE}: {} MiB Linux guest in QEMU", with.memory_bytes >> 20);
    Some(chart(title, &curves).file())
}

/// The page.
pub(super) fn render(options: &Options, runs: &[Run]) -> String {
    let guest = if options.guest == GuestKind::Model { " --guest model" } else { "" };
    let compare = if options.compare { " --compare" } else { "" };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (TITLE) }
                style { (PreEscaped(STYLE)) (PreEscaped(PAGE_STYLE)) }
            }
            body {
                h1 { (TITLE) }
                p {
                    (options.guest.name()) " fills memory and frees it, " (options.rounds) " times. It reports \
                    free pages every two seconds; the device discards them, which returns them to the host."
                }
                @for (nr, run) in runs.iter().enumerate() {
                    h2 { (run.device) }
                    p { (run.guest) }
                    @let curves = [("in use by the guest", used(run)), ("resident on the host", resident(run))];
                    @let chart = chart(format!("Memory over time, {}", run.device), &curves);
                    (chart.svg(&format!("c{nr}")))
                    (chart.legend())
                }
                h2 { "Figures" }
                div.scroll {
                    table {
                        tr { th {} @for run in runs { th { (run.device) } } }
                        @for row in ROWS {
                            tr { td { (row.name) } @for run in runs { td { ((row.value)(run)) } } }
                        }
                    }
                }
                @if let Some(text) = table::comparison(runs) { p { (text) } }
                p {
                    "Repeat: "
                    code { "cargo xtask demo --memory " (options.memory) " --rounds " (options.rounds) (guest) (compare) }
                    ". The samples are in " code { "result.json" } " beside this page."
                }
            }
        }
    };
    page.into_string()
}
