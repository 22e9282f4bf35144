// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The map of guest memory over time as SVG: time to the right, addresses upwards.

use std::fmt::Write;

use charts::{label, round_ticks};
use maud::{Markup, html};

use super::text::size;
use crate::store::{CellState, MemoryMap};

const WIDTH: usize = 360;
/// Room for half of the last label.
const RIGHT: usize = 8;
const HEIGHT: usize = 260;
const LEFT: usize = 20;
const TOP: usize = 18;
const BOTTOM: usize = 40;

/// The share of a state, in percent of all cells.
#[allow(clippy::cast_precision_loss)] // for display
fn percent(map: &MemoryMap, state: CellState) -> f64 {
    let all: usize = map.rows.iter().map(|row| row.chars().count()).sum();
    let of = map.rows.iter().flat_map(|row| row.chars()).filter(|c| *c == state.letter());
    of.count() as f64 / all.max(1) as f64 * 100.0
}

/// The map; `id` is unique on the page. States differ by pattern as well as by color.
#[allow(clippy::cast_precision_loss)] // coordinates and seconds
pub(super) fn svg(id: &str, title: &str, map: &MemoryMap) -> Markup {
    let columns = map.rows.len().max(1);
    let cells = map.rows.first().map_or(1, |row| row.chars().count()).max(1);
    let (width, height) = ((WIDTH - LEFT - RIGHT) as f64, (HEIGHT - TOP - BOTTOM) as f64);
    let (dx, dy) = (width / columns as f64, height / cells as f64);
    let seconds = |us: Option<&u64>| us.copied().unwrap_or(0) as f64 / 1e6;
    let (start, end) = (seconds(map.times_us.first()), seconds(map.times_us.last()));
    let share = |state| format!("{} {:.1} %", CellState::name(state), percent(map, state));
    let shares: Vec<String> = CellState::ALL.into_iter().map(share).collect();
    let path = |state: CellState| {
        let mut path = String::new();
        for (column, row) in map.rows.iter().enumerate() {
            let x = LEFT as f64 + column as f64 * dx;
            for (first, len) in runs(row, state.letter()) {
                let y = TOP as f64 + height - (first + len) as f64 * dy;
                // Writing to a string cannot fail.
                let _ = write!(path, "M{x:.1} {y:.1}h{dx:.2}v{:.1}h-{dx:.2}z", len as f64 * dy);
            }
        }
        path
    };
    let bytes = u64::try_from(cells).unwrap_or(u64::MAX).saturating_mul(map.cell_bytes);
    let axis = HEIGHT - BOTTOM;
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-labelledby={ (id) "-t " (id) "-d" } {
            title id={ (id) "-t" } { (title) }
            desc id={ (id) "-d" } {
                (columns) " columns of " (cells) " cells of " (size(map.cell_bytes)) " each. Of all of them: "
                (shares.join(", ")) "."
            }
            @for (state, d) in CellState::ALL.map(|state| (state, path(state))) {
                @if !d.is_empty() {
                    path class={ "m" (state.letter()) } d=(d) {}
                    @if overlay(state).is_some() { path fill={ "url(#p" (state.letter()) ")" } d=(d) {} }
                }
            }
            text x=(LEFT) y=(TOP - 5) { (size(bytes)) }
            text transform={ "translate(14 " (TOP as f64 + height / 2.0) ") rotate(-90)" } text-anchor="middle" {
                "address"
            }
            @for tick in round_ticks(start, end) {
                @let share = if end > start { (tick - start) / (end - start) } else { 0.0 };
                @let x = format!("{:.1}", LEFT as f64 + share * width);
                path.grid d={ "M" (x) " " (axis) "v4" } {}
                text x=(x) y=(axis + 17) text-anchor=(match share {
                    ..0.05 => "start",
                    ..0.95 => "middle",
                    _ => "end",
                }) { (label(tick)) }
            }
            text x=(LEFT as f64 + width / 2.0) y=(HEIGHT - 6) text-anchor="middle" { "s" }
        }
    }
}

/// The runs of a letter in a row: first position and length of each.
fn runs(row: &str, letter: char) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, _) in row.chars().enumerate().filter(|(_, c)| *c == letter) {
        match runs.last_mut() {
            Some((first, len)) if *first + *len == at => *len += 1,
            _ => runs.push((at, 1)),
        }
    }
    runs
}

/// The pattern over a state's color.
fn overlay(state: CellState) -> Option<&'static str> {
    match state {
        CellState::InUse => Some("M0 0h4v1h-4z"),
        CellState::Free => Some("M1 1h1v1h-1z"),
        CellState::Isolated => Some("M0 0h1v4h-1z"),
        CellState::Reported => Some("M0 0h1v1h-1zM1 1h1v1h-1zM2 2h1v1h-1zM3 3h1v1h-1z"),
        CellState::GivenBack => None,
    }
}

/// The patterns that all maps of a page share.
pub(super) fn patterns() -> Markup {
    html! {
        svg.defs aria-hidden="true" {
            defs {
                @for (state, d) in CellState::ALL.into_iter().filter_map(|state| Some((state, overlay(state)?))) {
                    pattern id={ "p" (state.letter()) } width="4" height="4" patternUnits="userSpaceOnUse" {
                        path.ink d=(d) {}
                    }
                }
            }
        }
    }
}

/// The legend of a map, with the share of each state.
pub(super) fn legend(map: &MemoryMap) -> Markup {
    html! {
        ul.legend {
            @for state in CellState::ALL {
                li {
                    svg.key viewBox="0 0 34 12" aria-hidden="true" {
                        rect class={ "m" (state.letter()) } width="34" height="12" {}
                        @if overlay(state).is_some() {
                            rect width="34" height="12" fill={ "url(#p" (state.letter()) ")" } {}
                        }
                    }
                    " " (state.name()) (format!(" {:.1} %", percent(map, state)))
                }
            }
        }
        p.of {
            "Of all cells, " (size(map.cell_bytes)) " each, at all times. A cell is in use if any of its pages is."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found() {
        assert_eq!(runs("uuffuu", 'u'), [(0, 2), (4, 2)]);
        assert_eq!(runs("", 'u'), []);
    }

    #[test]
    fn map_names_its_shares() {
        let map = MemoryMap {
            cell_bytes: 2 << 20,
            times_us: vec![0, 3_000_000],
            rows: vec!["uuff".into(), "ugir".into()],
        };
        let svg = svg("m1", "memory", &map).into_string();
        assert!(svg.contains("2 columns of 4 cells of 2 MiB each"), "{svg}");
        assert!(svg.contains("in use 37.5 %, free 25.0 %, isolated 12.5 %"), "{svg}");
        assert!(
            svg.contains("class=\"mg\"")
                && svg.contains(">1<")
                && svg.contains(">3<")
                && svg.contains(">8 MiB<")
        );
    }
}
