// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Draws the two curves live in a terminal; prints lines of text where there is no terminal.

use std::io::{self, IsTerminal, Stderr};

use anyhow::Result;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph};
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};
use vmm_integration::measure::host::Sample;

use super::run::mib;

const HEIGHT: u16 = 20;
/// Seconds between two lines where there is no terminal.
const LINE_EVERY: f64 = 1.0;

/// The place where the curves are shown.
pub(super) enum Screen {
    /// A terminal that can be drawn on.
    Chart(Box<Terminal<CrosstermBackend<Stderr>>>),
    /// Anything else. Holds the time of the last line in seconds.
    Lines(f64),
}

impl Screen {
    /// Draws on standard error, so that standard output holds nothing but results.
    pub(super) fn new() -> Self {
        // All three: reading the cursor's position needs standard output and input.
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        if terminal && io::stderr().is_terminal() {
            let options = TerminalOptions { viewport: Viewport::Inline(HEIGHT) };
            if let Ok(terminal) =
                Terminal::with_options(CrosstermBackend::new(io::stderr()), options)
            {
                return Self::Chart(Box::new(terminal));
            }
        }
        Self::Lines(0.0)
    }

    /// Shows the curve so far and the current step.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub(super) fn show(&mut self, doing: &str, memory_bytes: u64, curve: &[Sample]) -> Result<()> {
        match self {
            Self::Chart(terminal) => {
                terminal.draw(|frame| draw(frame, doing, memory_bytes, curve))?;
            }
            Self::Lines(last) => {
                if let Some(sample) = curve.last().filter(|s| s.seconds - *last >= LINE_EVERY) {
                    *last = sample.seconds;
                    eprintln!("{:6.1} s  {}  {doing}", sample.seconds, legend(sample));
                }
            }
        }
        Ok(())
    }

    /// Keeps the last picture and moves the cursor below it.
    pub(super) fn end(self) {
        if let Self::Chart(_) = self {
            eprintln!();
        }
    }
}

fn legend(sample: &Sample) -> String {
    let guest = sample.guest_used_bytes.map_or("   ?".to_owned(), |b| format!("{:4.0}", mib(b)));
    format!("guest {guest} MiB  host {:4.0} MiB", mib(sample.host_resident_bytes))
}

fn draw(frame: &mut Frame, doing: &str, memory_bytes: u64, curve: &[Sample]) {
    let [chart_area, line_area] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    let guest: Vec<(f64, f64)> =
        curve.iter().filter_map(|s| Some((s.seconds, mib(s.guest_used_bytes?)))).collect();
    let host: Vec<(f64, f64)> =
        curve.iter().map(|s| (s.seconds, mib(s.host_resident_bytes))).collect();
    let end = curve.last().map_or(0.0, |s| s.seconds).max(10.0);
    let top = mib(memory_bytes);
    let line = |name, data, color| {
        Dataset::default()
            .name(name)
            .data(data)
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(color))
    };
    let chart = Chart::new(vec![
        line("in use by the guest", &guest, Color::Cyan),
        line("resident on the host", &host, Color::Red),
    ])
    .block(Block::bordered().title(" MiB over seconds "))
    .x_axis(Axis::default().bounds([0.0, end]).labels(["0".to_owned(), format!("{end:.0}")]))
    .y_axis(Axis::default().bounds([0.0, top]).labels([
        "0".to_owned(),
        format!("{:.0}", top / 2.0),
        format!("{top:.0}"),
    ]));
    frame.render_widget(chart, chart_area);
    // Visible, so that after Ctrl-C the prompt is below the picture.
    frame.set_cursor_position((line_area.x, line_area.y));
    let numbers = curve.last().map(legend).unwrap_or_default();
    frame.render_widget(Paragraph::new(format!("{numbers}  {doing}")), line_area);
}
