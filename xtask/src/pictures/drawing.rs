// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The board as a picture. It is drawn by the project's own charts, from the answers of Prometheus: it
//! shows what the queries say, and not how Grafana looks.

use std::collections::{BTreeMap, BTreeSet};

use charts::{Chart, Line, STYLE, STYLES};
use maud::{Markup, PreEscaped, html};

use super::board::Answered;
use super::prometheus::Series;

/// Of a column and a line, in units of the view box.
const CELL: (u32, u32) = (60, 40);
const GAP: u32 = 8;
const COLUMNS: u32 = 24;
const HEAD: u32 = 46;
/// Of a chart's names.
const LEGEND: usize = 780;

/// What a panel's values are shown in: the divisor and the unit.
fn unit(name: &str) -> (f64, &'static str) {
    match name {
        "bytes" => (f64::from(1 << 20), "MiB"),
        "Bps" => (f64::from(1 << 20), "MiB/s"),
        "percentunit" => (0.01, "%"),
        "s" => (1.0, "s"),
        "ops" | "reqps" => (1.0, "1/s"),
        _ => (1.0, ""),
    }
}

/// The whole board.
pub(super) fn board(panels: &[Answered]) -> String {
    let bottom = panels.iter().map(|panel| panel.place.y + panel.place.h).max().unwrap_or(0);
    let (width, height) = (COLUMNS * CELL.0, bottom * CELL.1 + HEAD);
    let title = "The board of packaging/grafana, asked of Prometheus";
    let drawn = panels.iter().enumerate().map(|(nr, panel)| {
        let (x, y) = (panel.place.x * CELL.0, panel.place.y * CELL.1 + HEAD);
        let (w, h) = (panel.place.w * CELL.0 - GAP, panel.place.h * CELL.1 - GAP);
        html! {
            svg x=(x + GAP / 2) y=(y) width=(w) height=(h) viewBox={ "0 0 " (w) " " (h) } {
                (draw(panel, nr, w, h))
            }
        }
    });
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height) } role="img" aria-labelledby="t" {
            title id="t" { (title) }
            style { (PreEscaped(STYLE)) (PreEscaped(".page{fill:var(--bg)} svg .soft{fill:var(--soft)} svg .big{font-size:26px} svg .name{font-weight:600}")) }
            rect.page width=(width) height=(height) {}
            text x="12" y="28" font-weight="600" { (title) }
            text.soft x=(width - 12) y="28" text-anchor="end" { "drawn by this project's charts, not by Grafana" }
            @for panel in drawn { (panel) }
        }
    };
    svg.into_string() + "\n"
}

fn draw(panel: &Answered, nr: usize, width: u32, height: u32) -> Markup {
    match panel.kind.as_str() {
        "row" => html! {
            text.name x="8" y=(height - 4) { (panel.title) }
        },
        "stat" => html! { rect.card width=(width) height=(height) rx="8" {} (stat(panel)) },
        "table" => {
            html! { rect.card width=(width) height=(height) rx="8" {} (table(panel, width)) }
        }
        "state-timeline" => {
            html! { rect.card width=(width) height=(height) rx="8" {} (timeline(panel, width)) }
        }
        "heatmap" => {
            html! { rect.card width=(width) height=(height) rx="8" {} (heatmap(panel, width, height)) }
        }
        _ => chart(panel, nr, width, height),
    }
}

/// How often something took how long: a line a range of times, darker where there is more.
fn heatmap(panel: &Answered, width: u32, height: u32) -> Markup {
    let bound = |series: &Series| match series.labels["le"].as_str() {
        Some("+Inf") | None => f64::INFINITY,
        Some(le) => le.parse().unwrap_or(f64::INFINITY),
    };
    let mut ranges: Vec<_> = panel.series.iter().map(|(_, series)| series).collect();
    ranges.sort_by(|one, other| bound(one).total_cmp(&bound(other)));
    // Each range counts those below it, too.
    let mut below: BTreeMap<u64, f64> = BTreeMap::new();
    let mut cells = Vec::new();
    for (line, series) in ranges.iter().enumerate() {
        for (at, value) in &series.points {
            let before = below.insert(at.to_bits(), *value).unwrap_or(0.0);
            cells.push((line, *at, value - before));
        }
    }
    let most = cells.iter().map(|(.., value)| *value).fold(0.0, f64::max);
    let start = cells.iter().map(|(_, at, _)| *at).fold(f64::INFINITY, f64::min);
    let end = cells.iter().map(|(_, at, _)| *at).fold(start + 1.0, f64::max);
    let room = f64::from(width) - 130.0;
    let each =
        (f64::from(height) - 50.0) / f64::from(u32::try_from(ranges.len().max(1)).unwrap_or(1));
    let top = |line: usize| {
        let line = f64::from(u32::try_from(ranges.len() - 1 - line).unwrap_or(0));
        40.0 + each * line
    };
    html! {
        text.soft x="14" y="26" { (panel.title) ", up to" }
        @for (line, series) in ranges.iter().enumerate() {
            @let le = bound(series);
            text x="100" y=(format_args!("{:.1}", top(line) + each / 2.0 + 5.0)) text-anchor="end" {
                @if le.is_finite() { (charts::number(le * 1000.0)) " ms" } @else { "longer" }
            }
        }
        @for (line, at, value) in cells.iter().filter(|(.., value)| *value > 0.0) {
            rect x=(format_args!("{:.1}", 110.0 + room * (at - start) / (end - start)))
                y=(format_args!("{:.1}", top(*line))) height=(format_args!("{:.1}", each - 2.0))
                width=(format_args!("{:.1}", room / (end - start) + 0.3))
                style=(format_args!("fill:var(--c1);opacity:{:.2}", 0.15 + 0.85 * (value / most).sqrt())) {}
        }
    }
}

fn stat(panel: &Answered) -> Markup {
    let (divisor, unit) = unit(&panel.unit);
    html! {
        text.soft x="14" y="28" { (panel.title) }
        @for (nr, (name, series)) in panel.series.iter().take(3).enumerate() {
            @let value = series.points.last().map_or(0.0, |(_, value)| value / divisor);
            text x="14" y=(66 + 44 * nr) {
                @if panel.title != "hostd" { tspan.big { (charts::number(value)) " " (unit) } tspan.soft dx="8" { (name) } }
                @else { tspan.big { (name) } }
            }
        }
    }
}

/// Its last values, a line a VM.
fn table(panel: &Answered, width: u32) -> Markup {
    let mut columns: Vec<&str> = Vec::new();
    let mut rows: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    for (column, series) in &panel.series {
        let vm = series.labels["vm"].as_str().unwrap_or_default();
        if !columns.contains(&column.as_str()) {
            columns.push(column);
        }
        if let Some((_, value)) = series.points.last() {
            rows.entry(vm).or_default().insert(column, *value);
        }
    }
    let at = |nr: usize| {
        let nr = u32::try_from(nr + 2).unwrap_or(u32::MAX);
        let count = u32::try_from(columns.len() + 1).unwrap_or(u32::MAX);
        width / count * nr - 20
    };
    html! {
        text.soft x="14" y="28" { (panel.title) ", MiB" }
        text.name x="14" y="64" { "VM" }
        @for (nr, column) in columns.iter().enumerate() {
            text.name x=(at(nr)) y="64" text-anchor="end" { (column) }
        }
        @for (line, (vm, values)) in rows.iter().enumerate() {
            text x="14" y=(98 + 34 * line) { (vm) }
            @for (nr, column) in columns.iter().enumerate() {
                text x=(at(nr)) y=(98 + 34 * line) text-anchor="end" {
                    @if let Some(value) = values.get(column) { (format!("{:.0}", value / f64::from(1 << 20))) } @else { "-" }
                }
            }
        }
    }
}

/// Which state each VM was in, and when.
fn timeline(panel: &Answered, width: u32) -> Markup {
    let starts = panel.series.iter().filter_map(|(_, series)| series.points.first());
    let start = starts.map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
    let ends = panel.series.iter().filter_map(|(_, series)| series.points.last());
    let end = ends.map(|(at, _)| *at).fold(start + 1.0, f64::max);
    let label =
        |series: &Series, name: &str| series.labels[name].as_str().unwrap_or_default().to_owned();
    let of = |name| panel.series.iter().map(move |(_, series)| label(series, name));
    let vms: BTreeSet<_> = of("vm").collect();
    let states: BTreeSet<_> = of("state").collect();
    let room = f64::from(width) - 130.0;
    let x = |at: f64| 116.0 + room * (at - start) / (end - start);
    html! {
        text.soft x="14" y="26" { (panel.title) }
        @for (nr, state) in states.iter().enumerate() {
            rect x=(240 + 150 * nr) y="14" width="14" height="14" style={ "fill:var(--c" (nr % STYLES) ")" } {}
            text x=(260 + 150 * nr) y="26" { (state) }
        }
        @for (nr, vm) in vms.iter().enumerate() {
            text x="14" y=(62 + 40 * nr) { (vm) }
            @for (_, series) in panel.series.iter().filter(|(_, series)| label(series, "vm") == *vm) {
                @let color = states.iter().position(|state| *state == label(series, "state")).unwrap_or(0);
                @for (at, _) in &series.points {
                    rect x=(format_args!("{:.1}", x(*at))) y=(46 + 40 * nr) height="22" width=(format_args!("{:.1}", room / (end - start) + 0.5)) style={ "fill:var(--c" (color % STYLES) ")" } {}
                }
            }
        }
    }
}

/// Lines over time, as a picture of its own within the board.
fn chart(panel: &Answered, nr: usize, width: u32, height: u32) -> Markup {
    let (divisor, unit) = unit(&panel.unit);
    let known = || panel.series.iter().filter(|(_, series)| !series.points.is_empty());
    let start = known().map(|(_, series)| series.points[0].0).fold(f64::INFINITY, f64::min);
    let points: Vec<(String, Vec<(f64, f64)>)> = known()
        .filter(|(_, series)| {
            panel.kind != "heatmap" || series.points.iter().any(|point| point.1 > 0.0)
        })
        .take(STYLES)
        .scan(0, |width, (name, series)| {
            // Those whose names have no room are left out.
            *width += 60 + 7 * name.len();
            (*width < LEGEND).then_some((name, series))
        })
        .map(|(name, series)| {
            let moved = series.points.iter().map(|(at, value)| (at - start, value / divisor));
            (name.clone(), moved.collect())
        })
        .collect();
    let lines = points.iter().enumerate().map(|(style, (name, points))| Line {
        name: name.clone(),
        points,
        style,
        computed: false,
    });
    let chart = Chart {
        title: panel.title.clone(),
        x_unit: "s",
        y_unit: unit,
        lines: lines.collect(),
        range: Vec::new(),
    };
    // Its ids are for a file of its own, and its style is that of the board.
    let file = chart.file().replace("id=\"t\"", &format!("id=\"t{nr}\""));
    let file = file.replace("id=\"d\"", &format!("id=\"d{nr}\"")).replace(STYLE, "");
    let file = file.replace("aria-labelledby=\"t d\"", &format!("aria-labelledby=\"t{nr} d{nr}\""));
    let size = format!("<svg width=\"{width}\" height=\"{height}\" preserveAspectRatio=\"none\" ");
    html! { (PreEscaped(file.replacen("<svg ", &size, 1))) }
}
