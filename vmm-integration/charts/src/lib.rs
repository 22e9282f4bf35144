// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Line charts as SVG, within an HTML page or as a file of their own.
//!
//! Colors follow the reader's choice of light or dark. Lines differ by dash and marker as well as
//! by color. The text of a [`SMALL`] chart is legible on a phone.

mod axis;

use std::fmt::Write;

use maud::{Markup, PreEscaped, html};

use axis::{Axis, size_label};
pub use axis::{label, number, round_ticks};

/// The rules that charts and legends need, with the colors of a page around them.
pub const STYLE: &str = include_str!("style.css");
/// Lines of one chart that a reader can tell apart: the style has classes `l0` to `l5`.
pub const STYLES: usize = 6;
/// The size of a chart on a page, in units of its view box.
pub const SMALL: (f64, f64) = (360.0, 250.0);
/// The size of a picture that stands alone.
const WIDE: (f64, f64) = (840.0, 300.0);

const LEFT: f64 = 60.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 47.0;
/// The most markers on a line.
const MARKERS: usize = 8;

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in units of the axes.
    pub points: &'a [(f64, f64)],
    /// Its color, dash and marker, below [`STYLES`].
    pub style: usize,
    /// Whether its values are computed, not measured.
    pub computed: bool,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// What it shows.
    pub title: String,
    /// The unit of the horizontal axis.
    pub x_unit: &'a str,
    /// The unit of the vertical axis.
    pub y_unit: &'a str,
    /// Its lines.
    pub lines: Vec<Line<'a>>,
    /// Points that the axes must hold beside those of `lines`, so that charts can share a scale.
    pub range: Vec<&'a [(f64, f64)]>,
}

impl Chart<'_> {
    /// The chart for an HTML page with [`STYLE`]; `id` is unique on the page.
    pub fn svg(&self, id: &str) -> Markup {
        html! {
            svg viewBox={ "0 0 " (SMALL.0) " " (SMALL.1) } role="img" aria-labelledby={ (id) "-t " (id) "-d" } {
                title id={ (id) "-t" } { (self.title) }
                desc id={ (id) "-d" } { (self.in_words()) }
                (self.plot(SMALL))
            }
        }
    }

    /// The chart as an SVG file, with its style, title and legend.
    pub fn file(&self) -> String {
        let (width, height) = WIDE;
        let head = 66.0;
        // Each entry as wide as its text may be: its letters are narrower than 7 units.
        let wide =
            |line: &Line<'_>| 60.0 + 7.0 * f64::from(u16::try_from(line.name.len()).unwrap_or(0));
        let starts =
            self.lines.iter().scan(LEFT, |at, line| Some(std::mem::replace(at, *at + wide(line))));
        let svg = html! {
            svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height + head) } role="img" aria-labelledby="t d" {
                title id="t" { (self.title) }
                desc id="d" { (self.in_words()) }
                style { (PreEscaped(STYLE)) }
                rect.card width=(width) height=(height + head) rx="8" {}
                text x=(LEFT) y="26" font-weight="600" { (self.title) }
                @for (line, x) in self.lines.iter().zip(starts) {
                    g transform={ "translate(" (x) " 42)" } { (key(line)) text x="42" y="11" { (line.name) } }
                }
                g transform={ "translate(0 " (head) ")" } { (self.plot(WIDE)) }
            }
        };
        svg.into_string() + "\n"
    }

    /// Grid, labels and lines in a box of this size.
    fn plot(&self, (width, height): (f64, f64)) -> Markup {
        let points = || {
            self.lines.iter().map(|line| line.points).chain(self.range.iter().copied()).flatten()
        };
        // Over time no reader expects powers of ten, however close to zero a curve begins.
        let over_time = matches!(self.x_unit, "s" | "turn");
        let sizes = self.x_unit == "GiB";
        let by_points =
            if over_time { None } else { Axis::of_points(points().map(|point| point.0)) };
        let x = by_points
            .unwrap_or_else(|| Axis::new(points().map(|point| point.0), false, !over_time));
        let y = Axis::new(points().map(|point| point.1), true, !over_time);
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        let px = |value: f64| LEFT + x.at(value) * (right - LEFT);
        let py = |value: f64| bottom - y.at(value) * (bottom - TOP);
        html! {
            @for (tick, at) in y.ticks.iter().map(|tick| (*tick, py(*tick))) {
                path.grid d={ "M" (LEFT) " " (format_args!("{at:.1}")) "H" (right) } {}
                text x=(LEFT - 5.0) y=(format_args!("{:.1}", at + 4.5)) text-anchor="end" { (label(tick)) }
            }
            @for tick in &x.ticks {
                path.grid d={ "M" (format_args!("{:.1}", px(*tick))) " " (TOP) "V" (bottom) } {}
            }
            @for tick in x.labelled() {
                text x=(format_args!("{:.1}", px(tick))) y=(bottom + 20.0) text-anchor="middle" {
                    @if sizes { (size_label(tick)) } @else { (label(tick)) }
                }
            }
            text x=((LEFT + right) / 2.0) y=(height - 7.0) text-anchor="middle" {
                @if sizes { "size" } @else { (self.x_unit) }
            }
            text transform={ "translate(13 " ((TOP + bottom) / 2.0) ") rotate(-90)" } text-anchor="middle" { (self.y_unit) }
            @for (nr, line) in self.lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty()) {
                path class=(classes(line)) d=(path(line.points.iter().map(|&(a, b)| (px(a), py(b))))) {}
                @if !line.computed {
                    // Lines that lie on each other have their markers side by side.
                    @let every = line.points.len().div_ceil(MARKERS).max(1);
                    @for &(a, b) in line.points.iter().skip(nr * every / self.lines.len()).step_by(every) {
                        (marker(line.style, px(a), py(b)))
                    }
                }
            }
        }
    }

    /// The legend as an HTML list, so that its text keeps its size.
    pub fn legend(&self) -> Markup {
        html! {
            ul.legend {
                @for line in &self.lines {
                    li { svg.key viewBox="0 0 34 12" aria-hidden="true" { (key(line)) } " " (line.name) }
                }
            }
        }
    }

    /// What the chart shows, for readers without sight.
    fn in_words(&self) -> String {
        let Self { x_unit, y_unit, .. } = self;
        let sentence = |Line { name, points, .. }: &Line<'_>| {
            let (Some(first), Some(last)) = (points.first(), points.last()) else {
                return format!("{name}: no points.");
            };
            let most = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
            let [y0, x0, y1, x1, most] = [first.1, first.0, last.1, last.0, most].map(number);
            format!("{name}: from {y0} {y_unit} at {x0} {x_unit} to {y1} at {x1}, at most {most}.")
        };
        self.lines.iter().map(sentence).collect::<Vec<_>>().join(" ")
    }
}

/// The path through these points, to a tenth of a unit; points in a straight row are left out.
fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut d = String::new();
    let mut drawn: Vec<(String, String)> = Vec::new();
    for (x, y) in points {
        let point = (format!("{x:.1}"), format!("{y:.1}"));
        if let [.., before, last] = &drawn[..]
            && before.1 == last.1
            && last.1 == point.1
        {
            drawn.pop();
        }
        drawn.push(point);
    }
    for (x, y) in drawn {
        // Writing to a string cannot fail.
        let _ = write!(d, "{}{x} {y}", if d.is_empty() { 'M' } else { 'L' });
    }
    d
}

fn classes(line: &Line<'_>) -> String {
    format!("line l{}{}", line.style, if line.computed { " computed" } else { "" })
}

/// A piece of the line, 34 by 12 units.
fn key(line: &Line<'_>) -> Markup {
    html! {
        path class=(classes(line)) d="M1 6H33" {}
        @if !line.computed { (marker(line.style, 17.0, 6.0)) }
    }
}

/// A marker of a style, by shape.
fn marker(style: usize, x: f64, y: f64) -> Markup {
    let shape = match style {
        0 => "m-3-3h6v6h-6z",
        1 => "m0-4l4 7h-8z",
        2 => "m0-4l4 4l-4 4l-4-4z",
        3 => "m-3-3l6 6m0-6l-6 6",
        4 => "m-4 0h8m-4-4v8",
        _ => "m0 4l4-7h-8z",
    };
    html! { path class={ "mark l" (style) } d={ "M" (format_args!("{x:.1} {y:.1}")) (shape) } {} }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_says_in_words_what_it_shows() {
        let points = [(0.0, 1.0), (2.0, 5.0), (4.0, 2.0)];
        let line = Line { name: "d < e".into(), points: &points, style: 0, computed: false };
        let title = "memory".to_owned();
        let chart =
            Chart { title, x_unit: "s", y_unit: "MiB", lines: vec![line], range: Vec::new() };
        let words = "d &lt; e: from 1 MiB at 0 s to 2 at 4, at most 5.";
        let svg = chart.svg("c1").into_string();
        assert!(svg.contains("role=\"img\"") && svg.contains(words), "{svg}");
        assert!(chart.legend().into_string().contains("d &lt; e"));
        let file = chart.file();
        assert!(file.starts_with("<svg xmlns") && file.contains("prefers-color-scheme"), "{file}");
        assert!(
            file.contains(words) && file.contains("<text x=\"42\" y=\"11\">d &lt; e"),
            "{file}"
        );
    }

    #[test]
    fn path_leaves_out_points_in_a_row() {
        let row = [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 2.0)];
        assert_eq!(path(row.into_iter()), "M0.0 1.0L2.0 1.0L3.0 2.0");
    }
}
