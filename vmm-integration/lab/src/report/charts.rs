// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which curves share a chart.

use std::collections::BTreeMap;

use crate::store::{CaseRecord, Series};
use crate::table::Group;

/// The curve that a measured one is to be compared with.
pub(super) const CLOSED_FORM: &str = "closed-form";
/// That measured one.
pub(super) const MEASURED: &str = "measured";
/// More lines than these cannot be told apart; there are classes `l0` to `l5` in the page's style.
pub(super) const STYLES: usize = 6;

/// A line with its name.
pub(super) struct Line<'a> {
    /// For the legend.
    pub(super) name: String,
    /// What it shows.
    pub(super) series: &'a Series,
    /// Below [`STYLES`]: its colour and marker.
    pub(super) style: usize,
    /// It was computed and not measured.
    pub(super) computed: bool,
}

/// A chart.
pub(super) struct Chart<'a> {
    /// What it is called and shows.
    pub(super) title: String,
    /// At most [`STYLES`] measured ones.
    pub(super) lines: Vec<Line<'a>>,
    /// What the axes have to hold: where a chart was split, all parts have the same.
    pub(super) range: Vec<&'a Series>,
    /// The cases in it; none: all of the group.
    pub(super) cases: Vec<(&'a str, &'a CaseRecord)>,
}

/// The charts of a group; cases with the same curve share a line.
pub(super) fn charts<'a>(group: &Group<'a>) -> Vec<Chart<'a>> {
    let mut by_name: BTreeMap<&str, Vec<(&'a str, &'a Series)>> = BTreeMap::new();
    for &(case, record) in &group.cases {
        for (name, series) in record.series.iter().filter(|(name, _)| *name != CLOSED_FORM) {
            by_name.entry(name).or_default().push((case, series));
        }
    }
    let mut charts = Vec::new();
    charts.extend(compared(group));
    let all_compared = charts.first().is_some_and(|chart: &Chart<'_>| {
        chart.cases.len() == group.cases.iter().filter(|(_, r)| !r.series.is_empty()).count()
    });
    for (name, curves) in by_name {
        if name == MEASURED && all_compared {
            continue;
        }
        let lines = merged(curves, false);
        let range: Vec<&Series> = lines.iter().map(|line| line.series).collect();
        let what = range.first().map_or("", |series| &series.what);
        let parts = lines.len().div_ceil(STYLES);
        // Parts of about the same size.
        let each = lines.len().div_ceil(parts.max(1)).max(1);
        let mut lines = lines.into_iter().peekable();
        for part in 1..=parts {
            let mut lines: Vec<Line<'a>> = lines.by_ref().take(each).collect();
            restyle(&mut lines);
            let of = if parts > 1 { format!(" ({part} of {parts})") } else { String::new() };
            let title = format!("{name}: {what}{of}");
            charts.push(Chart { title, lines, range: range.clone(), cases: Vec::new() });
        }
    }
    charts
}

/// The analytic curve beside the measured one, of the cases that have both.
fn compared<'a>(group: &Group<'a>) -> Option<Chart<'a>> {
    let both = |record: &CaseRecord| {
        record.series.contains_key(CLOSED_FORM) && record.series.contains_key(MEASURED)
    };
    let cases: Vec<_> = group.cases.iter().filter(|(_, record)| both(record)).copied().collect();
    let of = |name: &str| -> Vec<(&'a str, &'a Series)> {
        cases.iter().filter_map(|(case, record)| Some((*case, record.series.get(name)?))).collect()
    };
    let mut lines = merged(of(MEASURED), false);
    lines.truncate(STYLES);
    restyle(&mut lines);
    let mut computed = merged(of(CLOSED_FORM), true);
    computed.truncate(STYLES);
    restyle(&mut computed);
    lines.extend(computed);
    let what = lines.first().map(|line| line.series.what.clone())?;
    let range = lines.iter().map(|line| line.series).collect();
    let title = format!("{MEASURED}, beside the closed form: {what}");
    Some(Chart { title, lines, range, cases })
}

fn merged<'a>(curves: Vec<(&'a str, &'a Series)>, computed: bool) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for (case, series) in curves {
        match lines.iter_mut().find(|line| line.series.points == series.points) {
            Some(same) => {
                same.name.push_str(", ");
                same.name.push_str(case);
            }
            None => {
                let of = if computed { "closed form of " } else { "" };
                lines.push(Line { name: format!("{of}{case}"), series, style: 0, computed });
            }
        }
    }
    lines
}

fn restyle(lines: &mut [Line<'_>]) {
    for (nr, line) in lines.iter_mut().enumerate() {
        line.style = nr % STYLES;
    }
}
