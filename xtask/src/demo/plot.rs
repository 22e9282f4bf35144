// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The curve as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::measure::Run;

const SIZE: (u32, u32) = (960, 420);
const GUEST: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const HOST: RGBColor = RGBColor(0xd6, 0x27, 0x28);

/// The guest's use and the host's resident memory over time, as an SVG element.
///
/// # Errors
/// If the plotting library fails.
pub(super) fn svg(run: &Run) -> Result<String> {
    let mut svg = String::new();
    draw(run, &mut svg).map_err(|error| anyhow!("cannot draw the curve: {error}"))?;
    Ok(svg)
}

fn draw(run: &Run, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let seconds = run.curve.last().map_or(1.0, |sample| sample.seconds).max(1.0);
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..seconds, 0.0..mib(run.memory_bytes))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .x_desc("seconds")
        .y_desc("MiB")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .label_style(("sans-serif", 15))
        .draw()?;
    let guest = run.curve.iter().filter_map(|s| Some((s.seconds, mib(s.guest_used_bytes?))));
    let host = run.curve.iter().map(|s| (s.seconds, mib(s.host_resident_bytes)));
    chart
        .draw_series(LineSeries::new(guest, GUEST.stroke_width(2)))?
        .label("in use by the guest")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], GUEST.stroke_width(3)));
    chart
        .draw_series(LineSeries::new(host, HOST.stroke_width(2)))?
        .label("resident on the host")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], HOST.stroke_width(3)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Bytes as MiB, for an axis.
#[allow(clippy::cast_precision_loss)] // for people to look at
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
