// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Draws the screen, at any size.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Table, TableState, Wrap};

use super::app::{App, Mode, target_in_words};
use super::columns::{COLUMNS, GAP, fitting};
use super::row::Row;
use super::text::{byte_rate, harmless, size, size_or_dash};

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const GOOD: Style = Style::new().fg(Color::Green);
const WARNS: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);
const KEYS: [(&str, &str); 9] = [
    ("↑↓", "guest"),
    ("←→", "sort"),
    ("i", "invert"),
    ("t", "target"),
    ("p", "pause"),
    ("r", "reclaim"),
    ("x", "interrupt"),
    ("?", "help"),
    ("q", "quit"),
];
/// Characters of a bar.
const BAR: usize = 20;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let heights =
        [Constraint::Length(3), Constraint::Min(3), Constraint::Length(3), Constraint::Length(1)];
    let [head, table, about, keys] = frame.area().layout(&Layout::vertical(heights));
    frame.render_widget(Paragraph::new(header(app)), head);
    draw_table(frame, app, table);
    frame.render_widget(Paragraph::new(details(app)).wrap(Wrap { trim: true }), about);
    frame.render_widget(Paragraph::new(keys_line()), keys);
    match &app.mode {
        Mode::Table => {}
        Mode::Help => window(frame, "Help", help(), 76),
        Mode::Target { socket, text, said } => {
            let name = harmless(&app.name(socket));
            let memory = app.selected().and_then(|row| row.memory_bytes);
            window(frame, &format!("Target of {name}"), target(text, memory, said.as_deref()), 60);
        }
        Mode::Reclaim { socket } => {
            let name = harmless(&app.name(socket));
            window(frame, &format!("Reclaim from {name}?"), reclaim(), 60);
        }
    }
}

fn header(app: &App) -> Vec<Line<'static>> {
    let host = &app.host;
    let rows = app.rows();
    let sum = |value: fn(&Row) -> Option<u64>| {
        rows.iter().filter_map(|row| value(row)).fold(0, u64::saturating_add)
    };
    let rates = rows.iter().filter_map(|row| row.reclaimed_bytes_per_second);
    let rate = byte_rate(Some(rates.sum()));
    let mut first = vec![Span::styled("Host    ", BOLD)];
    if let (Some(total), Some(available)) = (host.total_bytes, host.available_bytes) {
        let used = total.saturating_sub(available);
        let style = if available < total / 10 { BAD } else { GOOD };
        first.extend([Span::styled(bar(used, total), style), Span::raw(" ")]);
        first.push(Span::raw(format!(
            "{} of {}, {} available",
            size(used),
            size(total),
            size(available)
        )));
    }
    let percent =
        |percent: Option<f64>| percent.map_or("-".to_owned(), |part| format!("{part:.2} %"));
    let style = if host.full_percent.is_some_and(|part| part > 1.0) { BAD } else { Style::new() };
    let waits = format!(
        "for memory in the last 10 s: some tasks {}, all tasks {}",
        percent(host.some_percent),
        percent(host.full_percent)
    );
    let guests = format!(
        "{}, memory {}, resident {}, reclaimed {} ({rate})",
        match rows.len() {
            1 => "1 guest".to_owned(),
            count => format!("{count} guests"),
        },
        size(sum(|row| row.memory_bytes)),
        size(sum(|row| row.resident_bytes)),
        size(sum(|row| row.reclaimed_bytes)),
    );
    let mut waits = vec![Span::styled("Waits   ", BOLD), Span::styled(waits, style)];
    if let Some(state) = app.host.hostd_in_words() {
        waits.push(Span::raw(format!("   hostd: {}", harmless(&state))));
    }
    vec![
        Line::from(first),
        Line::from(waits),
        Line::from(vec![Span::styled("Guests  ", BOLD), Span::raw(guests)]),
    ]
}

fn bar(part: u64, whole: u64) -> String {
    let filled = (u128::from(part) * BAR as u128).div_ceil(u128::from(whole.max(1)));
    let filled = usize::try_from(filled).unwrap_or(BAR).min(BAR);
    "█".repeat(filled) + &"░".repeat(BAR - filled)
}

fn draw_table(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let rows = app.rows();
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let shown = fitting(area.width, longest);
    let titles = shown.iter().map(|(index, width)| {
        let column = &COLUMNS[*index];
        let is_sorted = *index == app.sorted_by;
        let style = if is_sorted { BOLD.fg(Color::Cyan) } else { BOLD };
        Cell::from(aligned(column.title, *width, column.right)).style(style)
    });
    let lines = rows.iter().map(|row| {
        let cells = shown.iter().map(|(index, width)| {
            let column = &COLUMNS[*index];
            let text = aligned(&(column.cell)(row), *width, column.right);
            Cell::from(text).style(style(column.title, row))
        });
        TableRow::new(cells)
    });
    let widths = shown.iter().map(|(_, width)| Constraint::Length(*width));
    let table = Table::new(lines, widths)
        .header(TableRow::new(titles).style(Style::new().add_modifier(Modifier::UNDERLINED)))
        .column_spacing(GAP)
        .row_highlight_style(Style::new().fg(Color::Reset).add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(app.selected_index());
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() {
        let text = "No daemon's control socket is here: see --sockets in the help.";
        let below = Rect { y: area.y + 2, height: area.height.saturating_sub(2), ..area };
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), below);
    }
}

/// The text in `width` columns; what is longer ends with an ellipsis.
pub(super) fn aligned(text: &str, width: u16, right: bool) -> String {
    let width = usize::from(width);
    let mut text = text.to_owned();
    if text.chars().count() > width {
        text = text.chars().take(width.saturating_sub(1)).collect::<String>() + "…";
    }
    if right { format!("{text:>width$}") } else { format!("{text:<width$}") }
}

fn style(title: &str, row: &Row) -> Style {
    if row.error.is_some() {
        return if title == "STATE" { BAD } else { DIM };
    }
    match title {
        "STATE" => match row.driver.as_deref() {
            _ if !row.paused_by.is_empty() => WARNS,
            _ if row.reclaim_target_bytes.is_some() => Style::new().fg(Color::Cyan),
            Some("reporting") => GOOD,
            Some("no_frontend") => DIM,
            _ => WARNS,
        },
        "PRESSURE" => match row.pressure {
            Some(signs) if signs.oom_kills > 0 => BAD,
            Some(signs) if signs.swapped_in_bytes > 0 || signs.swapped_out_bytes > 0 => WARNS,
            _ => DIM,
        },
        _ => Style::new(),
    }
}

/// Of the selected guest what the table has no room for, and the last answer.
fn details(app: &App) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(row) = app.selected() {
        lines.push(Line::from(vec![
            Span::styled(harmless(&row.name), BOLD),
            Span::raw(format!("  {}", harmless(&about(row)))),
        ]));
        if app.reclaims(&row.control_socket) {
            let progress = format!(
                "reclaiming: {} of {} in the balloon; x interrupts it, and so does leaving",
                size_or_dash(row.actual_bytes),
                size_or_dash(row.reclaim_target_bytes.or(row.target_bytes)),
            );
            lines.push(Line::styled(progress, Style::new().fg(Color::Cyan)));
        }
    }
    if let Some(said) = &app.said {
        lines.push(Line::styled(said.text.clone(), if said.is_error { BAD } else { GOOD }));
    }
    lines
}

fn about(row: &Row) -> String {
    if let Some(error) = &row.error {
        return error.clone();
    }
    let mut parts = Vec::new();
    parts.extend(row.driver_hint.clone());
    parts.extend(row.target_refused.as_ref().map(|why| format!("target refused: {why}")));
    if let (Some(base), Some(left)) = (row.base_target_bytes, row.lease_left_seconds) {
        parts.push(format!("in {left:.0} s the target is {} again", size(base)));
    }
    match row.statistics_age_seconds {
        Some(age) => parts.push(format!("statistics of {age:.0} s ago")),
        None => parts.push("the guest has sent no statistics".to_owned()),
    }
    parts.push(row.control_socket.display().to_string());
    parts.join(", ")
}

fn keys_line() -> Line<'static> {
    let spans = KEYS.iter().flat_map(|(key, what)| {
        [
            Span::styled(format!(" {key} "), Style::new().add_modifier(Modifier::REVERSED)),
            Span::raw(format!(" {what}  ")),
        ]
    });
    Line::from(spans.collect::<Vec<_>>())
}

/// A window in the middle, as wide as it may be and as high as its text.
fn window(frame: &mut Frame<'_>, title: &str, lines: Vec<Line<'static>>, width: u16) {
    let area = frame.area();
    let width = width.min(area.width);
    let inner = usize::from(width.saturating_sub(2)).max(1);
    let needed: usize = lines.iter().map(|line| line.width().div_ceil(inner).max(1)).sum();
    let height = u16::try_from(needed + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(format!(" {title} "));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), place);
}

fn target(text: &str, memory: Option<u64>, said: Option<&str>) -> Vec<Line<'static>> {
    let mut lines = vec![
        Line::raw("Memory for the balloon, as 512M, or for the guest, as leave 1G."),
        Line::from(vec![
            Span::styled("> ", BOLD),
            Span::raw(text.to_owned()),
            Span::styled("█", DIM),
        ]),
        Line::styled(target_in_words(text, memory), DIM),
    ];
    if let Some(said) = said {
        lines.push(Line::styled(said.to_owned(), WARNS));
    }
    lines.push(Line::styled("Enter sets it, Esc leaves it as it is.", DIM));
    lines
}

fn reclaim() -> Vec<Line<'static>> {
    vec![
        Line::raw(
            "The balloon takes what the guest has available, down to its reserve, and lets go. The guest drops clean page cache.",
        ),
        Line::styled("y starts it, any other key does not.", DIM),
    ]
}

fn help() -> Vec<Line<'static>> {
    let key = |key: &str, what: &str| {
        Line::from(vec![Span::styled(format!("{key:<11}"), BOLD), Span::raw(what.to_owned())])
    };
    let mut lines = vec![
        key("↑ ↓ j k", "select a guest; Home, End, Page Up and Page Down, too"),
        key("← → < >", "sort by another column; i inverts the order"),
        key("t", "set the target of the guest"),
        key("p", "pause discarding for the guest, or resume it"),
        key("r", "reclaim: squeeze what the guest has available, and let go"),
        key("x", "interrupt a reclaim"),
        key("q ctrl-C", "quit; a reclaim in progress lets go"),
    ];
    lines.extend(COLUMNS.iter().map(|column| key(column.title, column.about)));
    lines
}

#[cfg(test)]
mod tests;
