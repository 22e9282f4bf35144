// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Curves as SVG, one chart for each thing that was measured.
//!
//! Small enough to be read on a phone without scaling, in the page's own colours. Lines differ by
//! dash and marker as well as by colour.

use std::fmt::Write;

use super::charts::{Chart, Line};
use super::{escape, size};
use crate::store::Series;
use crate::table::number;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 47.0;
/// At most so many points of a line have a marker.
const MARKERS: usize = 8;
/// So far apart, as a share of the axis, labels do not touch.
const APART: f64 = 0.17;

/// An axis, linear or by powers of ten.
struct Axis {
    min: f64,
    max: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, from_zero: bool, may_be_log: bool) -> Self {
        let min = values.clone().fold(f64::INFINITY, f64::min);
        let max = values.fold(f64::NEG_INFINITY, f64::max);
        if !(min.is_finite() && max.is_finite()) {
            return Self { min: 0.0, max: 1.0, log: false, ticks: vec![0.0, 1.0] };
        }
        if may_be_log && min > 0.0 && max / min > 50.0 {
            let (low, high) = (min.log10().floor(), max.log10().ceil());
            let mut ticks = Vec::new();
            let step = ((high - low) / 5.0).ceil().max(1.0);
            let mut power = low;
            while power <= high {
                ticks.push(10_f64.powf(power));
                power += step;
            }
            return Self { min: 10_f64.powf(low), max: 10_f64.powf(high), log: true, ticks };
        }
        let min = if from_zero { min.min(0.0) } else { min };
        let span = if max > min { max - min } else { max.abs().max(1.0) };
        let rough = span / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(power * 10.0);
        let start = (min / step).floor() * step;
        let mut ticks = vec![start];
        while let Some(&last) = ticks.last()
            && last < min + span
            && ticks.len() < 10
        {
            ticks.push(last + step);
        }
        let end = ticks.last().copied().unwrap_or(min + span);
        Self { min: start, max: end, log: false, ticks }
    }

    /// By powers, with a tick where something was measured, unless that is at too many places or
    /// does not go up by powers.
    fn of_points(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut ticks: Vec<f64> = values.collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let (min, max) = (*ticks.first()?, *ticks.last()?);
        let powers = min > 0.0 && max.is_finite() && max / min > 50.0;
        (powers && ticks.len() <= 12).then_some(Self { min, max, log: true, ticks })
    }

    /// The ticks that have room for a label: the last one has, and each that is far enough from the
    /// one after it.
    fn labelled(&self) -> Vec<f64> {
        let mut labelled: Vec<f64> = Vec::new();
        for &tick in self.ticks.iter().rev() {
            if labelled.last().is_none_or(|next| self.at(*next) - self.at(tick) >= APART) {
                labelled.push(tick);
            }
        }
        labelled
    }

    /// Where a value lies, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let of = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        let (min, max) = (of(self.min), of(self.max));
        ((of(value) - min) / (max - min)).clamp(0.0, 1.0)
    }
}

/// A tick's label.
pub(super) fn label(value: f64) -> String {
    let short = |value: f64| {
        let text = number(value);
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    };
    for (limit, unit) in [(1e9, "G"), (1e6, "M"), (1e4, "k")] {
        if value.abs() >= limit {
            let scale = if unit == "k" { 1e3 } else { limit };
            return format!("{}{unit}", short(value / scale));
        }
    }
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.0e}") } else { short(value) }
}

/// A tick's label on an axis of sizes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // whole and small
fn size_label(gib: f64) -> String {
    if gib >= 1.0 && gib.fract() == 0.0 && gib < 1e9 {
        size((gib as u64) << 30)
    } else {
        format!("{} GiB", number(gib))
    }
}

/// Round numbers from `start` to `end`.
pub(super) fn round_ticks(start: f64, end: f64) -> Vec<f64> {
    let ticks = Axis::new([start, end].into_iter(), false, false).ticks;
    ticks.into_iter().filter(|tick| (start..=end).contains(tick)).collect()
}

/// The chart; `id` is unique on the page.
pub(super) fn svg(id: &str, chart: &Chart<'_>) -> String {
    let Chart { title, lines, range, .. } = chart;
    let points = || range.iter().flat_map(|series| series.points.iter());
    let (x_unit, y_unit) =
        range.first().map_or(("", ""), |series| (&series.x_unit, &series.y_unit));
    // Over time nobody expects powers of ten, however close to zero a curve begins.
    let over_time = matches!(x_unit, "s" | "turn");
    let sizes = x_unit == "GiB";
    let by_points = if over_time { None } else { Axis::of_points(points().map(|point| point.0)) };
    let x =
        by_points.unwrap_or_else(|| Axis::new(points().map(|point| point.0), false, !over_time));
    let y = Axis::new(points().map(|point| point.1), true, !over_time);
    let px = |value: f64| LEFT + x.at(value) * (WIDTH - LEFT - RIGHT);
    let py = |value: f64| HEIGHT - BOTTOM - y.at(value) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>\n",
        escape(title),
        escape(&in_words(lines))
    );
    for &tick in &y.ticks {
        let at = py(tick);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 5.0,
            at + 4.5,
            label(tick)
        );
    }
    for &tick in &x.ticks {
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{:.1} {TOP}V{:.1}\"/>",
            px(tick),
            HEIGHT - BOTTOM
        );
    }
    for tick in x.labelled() {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            px(tick),
            HEIGHT - BOTTOM + 20.0,
            if sizes { size_label(tick) } else { label(tick) }
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(13 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 7.0,
        escape(if sizes { "size" } else { x_unit }),
        (TOP + HEIGHT - BOTTOM) / 2.0,
        escape(y_unit)
    );
    for (nr, line) in lines.iter().enumerate() {
        let points = &line.series.points;
        let path: Vec<String> =
            points.iter().map(|&(a, b)| format!("{:.1} {:.1}", px(a), py(b))).collect();
        if path.is_empty() {
            continue;
        }
        let _ = writeln!(svg, "<path class=\"{}\" d=\"M{}\"/>", classes(line), path.join("L"));
        if line.computed {
            continue;
        }
        // Lines that lie on each other have their markers side by side.
        let every = points.len().div_ceil(MARKERS).max(1);
        for &(a, b) in points.iter().skip(nr * every / lines.len()).step_by(every) {
            svg.push_str(&marker(line.style, px(a), py(b)));
        }
    }
    svg.push_str("</svg>");
    svg
}

fn classes(line: &Line<'_>) -> String {
    format!("line l{}{}", line.style, if line.computed { " computed" } else { "" })
}

/// A marker of a style, by shape.
fn marker(style: usize, x: f64, y: f64) -> String {
    let d = match style {
        0 => "m-3-3h6v6h-6z",
        1 => "m0-4l4 7h-8z",
        2 => "m0-4l4 4l-4 4l-4-4z",
        3 => "m-3-3l6 6m0-6l-6 6",
        4 => "m-4 0h8m-4-4v8",
        _ => "m0 4l4-7h-8z",
    };
    format!("<path class=\"mark l{style}\" d=\"M{x:.1} {y:.1}{d}\"/>\n")
}

/// The legend, in HTML, so that its text keeps its size.
pub(super) fn legend(lines: &[Line<'_>]) -> String {
    let entry = |line: &Line<'_>| {
        let mark = if line.computed { String::new() } else { marker(line.style, 17.0, 6.0) };
        format!(
            "<li><svg class=\"key\" viewBox=\"0 0 34 12\" aria-hidden=\"true\">\
             <path class=\"{}\" d=\"M1 6H33\"/>{}</svg> {}</li>",
            classes(line),
            mark.trim_end(),
            escape(&line.name)
        )
    };
    format!("<ul class=\"legend\">{}</ul>", lines.iter().map(entry).collect::<String>())
}

/// What the chart shows, for who does not see it.
fn in_words(lines: &[Line<'_>]) -> String {
    let sentence = |line: &Line<'_>| {
        let Series { x_unit, y_unit, points, .. } = line.series;
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return format!("{}: no points.", line.name);
        };
        let most = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
        format!(
            "{}: from {} {y_unit} at {} {x_unit} to {} at {}, at most {}.",
            line.name,
            number(first.1),
            number(first.0),
            number(last.1),
            number(last.0),
            number(most)
        )
    };
    lines.iter().map(sentence).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: Vec<(f64, f64)>) -> Series {
        Series { x_unit: "s".into(), y_unit: "MiB".into(), what: String::new(), points }
    }

    #[test]
    fn an_axis_holds_its_values_and_has_few_ticks() {
        for values in [vec![0.0], vec![3.0, 3.0], vec![0.0, 7.3], vec![1.0, 1e6], vec![-2.0, 5.0]] {
            let axis = Axis::new(values.iter().copied(), true, true);
            assert!((2..=11).contains(&axis.ticks.len()), "{values:?}: {:?}", axis.ticks);
            for &value in &values {
                assert!(axis.min <= value && value <= axis.max, "{values:?}");
                assert!((0.0..=1.0).contains(&axis.at(value)));
            }
        }
        assert!(Axis::new([1.0, 1e6].into_iter(), true, true).log);
        assert!(!Axis::new([0.0, 1e6].into_iter(), true, true).log);
        assert!(!Axis::new([1.0, 1e6].into_iter(), true, false).log, "over time");
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.5, "0.5"), (1500.0, "1500"), (20000.0, "20k"), (4e6, "4M"), (1e9, "1G")]
        {
            assert_eq!(label(value), text);
        }
    }

    #[test]
    fn sizes_are_sizes_and_labels_do_not_touch() {
        for (gib, text) in
            [(1.0, "1 GiB"), (256.0, "256 GiB"), (16384.0, "16 TiB"), (0.5, "0.5000 GiB")]
        {
            assert_eq!(size_label(gib), text);
        }
        let sizes = [1.0, 16.0, 256.0, 1024.0, 16384.0];
        let axis = Axis::of_points(sizes.into_iter().chain(sizes)).unwrap();
        assert_eq!(axis.ticks, sizes);
        assert_eq!(axis.labelled(), [16384.0, 1024.0, 16.0, 1.0], "256 is too close to 1024");
        assert!(Axis::of_points([1.0, 2.0].into_iter()).is_none());
        assert!(Axis::of_points([0.0, 1e6].into_iter()).is_none());
    }

    #[test]
    fn a_chart_says_in_words_what_it_shows() {
        let series = series(vec![(0.0, 1.0), (2.0, 5.0), (4.0, 2.0)]);
        let line = Line { name: "d < e".into(), series: &series, style: 0, computed: false };
        let (title, range, cases) = ("memory".into(), vec![&series], Vec::new());
        let chart = Chart { title, lines: vec![line], range, cases };
        let svg = svg("c1", &chart);
        assert!(svg.contains("role=\"img\""));
        assert!(svg.contains("d &lt; e: from 1 MiB at 0 s to 2 at 4, at most 5."), "{svg}");
        assert!(legend(&chart.lines).contains("d &lt; e"));
    }
}
