// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which curves share a chart.

use std::collections::BTreeMap;

use charts::{Chart, Line, STYLES};

use crate::store::{CaseRecord, Series};
use crate::table::Group;

/// The name of a computed curve, drawn beside the measured one.
pub(super) const CLOSED_FORM: &str = "closed-form";
/// The name of the measured curve.
pub(super) const MEASURED: &str = "measured";
/// Between the name of a chart and that of a line in it, of several lines of one case.
const OF: &str = " of ";
/// A chart with the cases in it.
pub(super) struct OfCases<'a> {
    pub(super) chart: Chart<'a>,
    /// The cases; empty for all of the group.
    pub(super) cases: Vec<(&'a str, &'a CaseRecord)>,
}

/// The charts of a group; cases with the same curve share a line.
pub(super) fn charts<'a>(group: &Group<'a>) -> Vec<OfCases<'a>> {
    let mut by_name: BTreeMap<&str, Vec<(&'a str, &'a Series)>> = BTreeMap::new();
    for &(case, record) in &group.cases {
        for (name, series) in record.series.iter().filter(|(name, _)| *name != CLOSED_FORM) {
            // What a case has several of share a chart.
            let (name, line) = name.split_once(OF).unwrap_or((name, case));
            by_name.entry(name).or_default().push((line, series));
        }
    }
    let mut charts = Vec::new();
    charts.extend(compared(group));
    let all_compared = charts.first().is_some_and(|compared: &OfCases<'_>| {
        compared.cases.len() == group.cases.iter().filter(|(_, r)| !r.series.is_empty()).count()
    });
    for (name, curves) in by_name {
        if name == MEASURED && all_compared {
            continue;
        }
        let Some(Series { x_unit, y_unit, what, .. }) = curves.first().map(|curve| curve.1) else {
            continue;
        };
        let lines = merged(curves, false);
        let range: Vec<&[(f64, f64)]> = lines.iter().map(|line| line.points).collect();
        let parts = lines.len().div_ceil(STYLES);
        // Parts of about the same size.
        let each = lines.len().div_ceil(parts.max(1)).max(1);
        let mut lines = lines.into_iter().peekable();
        for part in 1..=parts {
            let mut lines: Vec<Line<'a>> = lines.by_ref().take(each).collect();
            restyle(&mut lines);
            let of = if parts > 1 { format!(" ({part} of {parts})") } else { String::new() };
            let title = format!("{name}: {what}{of}");
            let chart = Chart { title, x_unit, y_unit, lines, range: range.clone() };
            charts.push(OfCases { chart, cases: Vec::new() });
        }
    }
    charts
}

/// The analytic curve beside the measured one, of the cases that have both.
fn compared<'a>(group: &Group<'a>) -> Option<OfCases<'a>> {
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
    let Series { x_unit, y_unit, what, .. } = cases.first()?.1.series.get(MEASURED)?;
    let title = format!("{MEASURED}, beside the closed form: {what}");
    let chart = Chart { title, x_unit, y_unit, lines, range: Vec::new() };
    Some(OfCases { chart, cases })
}

fn merged<'a>(curves: Vec<(&'a str, &'a Series)>, computed: bool) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for (case, series) in curves {
        match lines.iter_mut().find(|line| line.points == series.points) {
            Some(same) => {
                same.name.push_str(", ");
                same.name.push_str(case);
            }
            None => {
                let of = if computed { "closed form of " } else { "" };
                let points = series.points.as_slice();
                lines.push(Line { name: format!("{of}{case}"), points, style: 0, computed });
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
