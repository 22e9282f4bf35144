// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Screens as SVG.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use maud::{Markup, PreEscaped, html};

/// Of a character, in units of the view box. Letters of 14 units are 8.4 wide in most monospaced fonts.
const CELL: (f64, f64) = (8.4, 18.0);
const FONT: f64 = 14.0;
const MARGIN: f64 = 12.0;
/// Of the window around it.
const TITLE: f64 = 30.0;
const BACKGROUND: &str = "#161b22";
const FOREGROUND: &str = "#d5dbe3";
/// The sixteen colors of a terminal.
const COLORS: [&str; 16] = [
    "#161b22", "#ff7b72", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#d5dbe3",
    "#6e7681", "#ffa198", "#7ee787", "#f2cc60", "#a5d6ff", "#e2c5ff", "#b3f0ff", "#ffffff",
];

/// How a run of characters looks.
#[derive(Clone, Debug, Default, PartialEq)]
struct Look {
    foreground: Option<String>,
    background: Option<String>,
    bold: bool,
    dim: bool,
    underline: bool,
}

impl Look {
    /// Whether a blank shows it.
    fn is_drawn(&self) -> bool {
        self.background.is_some() || self.underline
    }

    fn of(cell: &vt100::Cell) -> Self {
        let (mut foreground, mut background) = (color(cell.fgcolor()), color(cell.bgcolor()));
        if cell.inverse() {
            let was = foreground.take();
            foreground = Some(background.take().unwrap_or_else(|| BACKGROUND.to_owned()));
            background = Some(was.unwrap_or_else(|| FOREGROUND.to_owned()));
        }
        let (bold, dim, underline) = (cell.bold(), cell.dim(), cell.underline());
        Self { foreground, background, bold, dim, underline }
    }
}

fn color(color: vt100::Color) -> Option<String> {
    match color {
        vt100::Color::Default => None,
        vt100::Color::Idx(index) => Some(indexed(index)),
        vt100::Color::Rgb(red, green, blue) => Some(format!("#{red:02x}{green:02x}{blue:02x}")),
    }
}

/// One of the 256 colors of a terminal: 16 by name, a cube of 216, and 24 grays.
fn indexed(index: u8) -> String {
    if let Some(named) = COLORS.get(usize::from(index)) {
        return (*named).to_owned();
    }
    let level = |step: u8| if step == 0 { 0 } else { 55 + 40 * step };
    let (red, green, blue) = match index {
        232.. => {
            let gray = 8 + 10 * (index - 232);
            (gray, gray, gray)
        }
        _ => {
            let index = index - 16;
            (level(index / 36), level(index / 6 % 6), level(index % 6))
        }
    };
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Lines and columns.
fn size(screen: &vt100::Screen) -> (u16, u16) {
    let (lines, columns) = screen.size();
    (lines.get(), columns.get())
}

/// A run of characters that look alike.
struct Run {
    column: u16,
    look: Look,
    text: String,
}

/// The runs of a line. Two blanks end one, so that no viewer needs to keep blanks, unless they show
/// something.
fn runs(screen: &vt100::Screen, line: u16) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut next = 0;
    for column in 0..size(screen).1 {
        let Some(cell) = screen.cell(line, column) else { continue };
        if cell.is_wide_continuation() {
            continue;
        }
        let look = Look::of(cell);
        let text = if cell.has_contents() { cell.contents() } else { " " };
        match runs.last_mut() {
            Some(run)
                if run.look == look
                    && next == column
                    && (look.is_drawn() || text != " " || !run.text.ends_with(' ')) =>
            {
                run.text.push_str(text);
            }
            _ => runs.push(Run { column, look, text: text.to_owned() }),
        }
        next = column + 1;
    }
    runs.retain(|run| run.look.is_drawn() || !run.text.trim().is_empty());
    runs
}

/// A line, drawn from its upper left corner on.
fn line(screen: &vt100::Screen, nr: u16) -> String {
    let mut svg = String::new();
    for Run { column, look, text } in runs(screen, nr) {
        let x = |column: u16| f64::from(column) * CELL.0;
        let width = |text: &str| x(u16::try_from(text.chars().count()).unwrap_or(u16::MAX));
        if let Some(background) = &look.background {
            let _ = write!(
                svg,
                "<rect x=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{background}\" shape-rendering=\"crispEdges\"/>",
                x(column),
                width(&text),
                CELL.1
            );
        }
        if look.underline {
            let (from, to) = (x(column), x(column) + width(&text));
            let _ = write!(
                svg,
                "<path d=\"M{from:.1} 17H{to:.1}\" stroke=\"currentColor\" opacity=\".5\"/>"
            );
        }
        let mut style = String::new();
        if let Some(color) = &look.foreground {
            let _ = write!(style, " fill=\"{color}\"");
        }
        style += if look.bold { " font-weight=\"700\"" } else { "" };
        style += if look.dim { " opacity=\".6\"" } else { "" };
        for (offset, word) in words(&text) {
            // The length keeps columns in place, whatever font there is.
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"13.5\" textLength=\"{:.1}\"{style}>{}</text>",
                x(column + offset),
                width(word),
                html! { (word) }.into_string()
            );
        }
    }
    svg
}

/// The parts of a text between two blanks or more, and in which column each begins.
fn words(text: &str) -> Vec<(u16, &str)> {
    let mut words = Vec::new();
    let mut offset = 0;
    for part in text.split("  ") {
        let word = part.trim();
        let before = part.len() - part.trim_start().len();
        if !word.is_empty() {
            words.push((u16::try_from(offset + before).unwrap_or(u16::MAX), word));
        }
        offset += part.chars().count() + 2;
    }
    words
}

/// A window with these contents.
fn window(title: &str, about: &str, size: (u16, u16), style: &str, contents: &str) -> String {
    let width = f64::from(size.1) * CELL.0 + 2.0 * MARGIN;
    let height = f64::from(size.0) * CELL.1 + TITLE + MARGIN;
    let dots: Vec<(f64, &str)> = vec![(18.0, "#ff5f56"), (36.0, "#ffbd2e"), (54.0, "#27c93f")];
    let svg: Markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (format_args!("{width:.0}")) " " (format_args!("{height:.0}")) } role="img" aria-labelledby="t d" {
            title id="t" { (title) }
            desc id="d" { (about) }
            style {
                "text{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:" (FONT) "px}"
                (PreEscaped(style))
            }
            rect width="100%" height="100%" rx="8" fill=(BACKGROUND) {}
            @for (x, color) in dots { circle cx=(x) cy="15" r="5" fill=(color) {} }
            text x="50%" y="19" text-anchor="middle" opacity=".7" fill=(FOREGROUND) { (title) }
            g fill=(FOREGROUND) color=(FOREGROUND) transform={ "translate(" (MARGIN) " " (TITLE) ")" } { (PreEscaped(contents)) }
        }
    };
    svg.into_string() + "\n"
}

/// The screen as a picture. `about` says in words what it shows.
pub fn picture(screen: &vt100::Screen, title: &str, about: &str) -> String {
    let mut contents = String::new();
    for nr in 0..size(screen).0 {
        let text = line(screen, nr);
        if !text.is_empty() {
            let y = f64::from(nr) * CELL.1;
            let _ = writeln!(contents, "<g transform=\"translate(0 {y:.0})\">{text}</g>");
        }
    }
    window(title, about, size(screen), "", &contents)
}

/// Screens one after the other, each from its time on, as a picture that moves. The last one stays for
/// `rest`; then it begins again. A line that stays is drawn once.
pub fn animation(
    screens: &[(Duration, vt100::Screen)],
    rest: Duration,
    title: &str,
    about: &str,
) -> String {
    let (Some(first), Some(last)) = (screens.first(), screens.last()) else { return String::new() };
    let (begin, end) = (first.0, last.0 + rest);
    let whole = end.saturating_sub(begin).as_secs_f64();
    let percent = |at: Duration| 100.0 * at.saturating_sub(begin).as_secs_f64() / whole;
    // Of each line what it shows, and when.
    let mut shown: BTreeMap<(u16, String), Vec<(f64, f64)>> = BTreeMap::new();
    for (index, (at, screen)) in screens.iter().enumerate() {
        let until = screens.get(index + 1).map_or(end, |(next, _)| *next);
        let (from, to) = (percent(*at), percent(until));
        for nr in 0..size(screen).0 {
            let spans = shown.entry((nr, line(screen, nr))).or_default();
            match spans.last_mut() {
                Some((_, end)) if (*end - from).abs() < 1e-9 => *end = to,
                _ => spans.push((from, to)),
            }
        }
    }
    let (mut style, mut contents) = (String::new(), String::new());
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for ((nr, text), spans) in shown.iter().filter(|((_, text), _)| !text.is_empty()) {
        let y = f64::from(*nr) * CELL.1;
        let always = spans.len() == 1 && spans[0].0 <= 0.0 && spans[0].1 >= 100.0 - 1e-9;
        let class = if always {
            String::new()
        } else {
            let frames = keyframes(spans);
            let next = names.len();
            let name = *names.entry(frames.clone()).or_insert(next);
            if name == next {
                let _ = writeln!(
                    style,
                    "@keyframes k{name}{{{frames}}}.k{name}{{opacity:0;animation:k{name} {whole:.2}s step-end infinite}}"
                );
            }
            format!(" class=\"k{name}\"")
        };
        let _ = writeln!(contents, "<g{class}><g transform=\"translate(0 {y:.0})\">{text}</g></g>");
    }
    window(title, about, size(&first.1), &style, &contents)
}

/// Shows something during these parts of the whole, in percent, and hides it otherwise.
fn keyframes(spans: &[(f64, f64)]) -> String {
    let mut frames = String::new();
    if spans.first().is_none_or(|(from, _)| *from > 0.0) {
        frames += "0%{opacity:0}";
    }
    for (from, to) in spans {
        let _ = write!(frames, "{from:.3}%{{opacity:1}}");
        if *to < 100.0 - 1e-9 {
            let _ = write!(frames, "{to:.3}%{{opacity:0}}");
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(bytes: &[u8]) -> vt100::Screen {
        let mut parser = crate::recording::parser(20, 3);
        parser.process(bytes);
        parser.screen().clone()
    }

    #[test]
    fn picture_has_text_and_colors_in_place() {
        let svg =
            picture(&screen(b"\x1b[31ma<b\x1b[0m  \x1b[7mc\x1b[0m\r\n\x1b[1mbold"), "T", "what");
        let red = "<text x=\"0.0\" y=\"13.5\" textLength=\"25.2\" fill=\"#ff7b72\">a&lt;b</text>";
        assert!(svg.contains(red), "{svg}");
        assert!(
            svg.contains("<rect x=\"42.0\" width=\"8.4\" height=\"18\" fill=\"#d5dbe3\" shape-rendering=\"crispEdges\"/>"),
            "{svg}"
        );
        assert!(svg.contains("font-weight=\"700\">bold</text>"), "{svg}");
    }

    #[test]
    fn columns_keep_their_places() {
        assert_eq!(words("a b   c "), [(0, "a b"), (6, "c")]);
        assert_eq!(words("    4G  ░ "), [(4, "4G"), (8, "░")]);
        let svg = picture(&screen(b"ab     4G\r\n\x1b[7mx    y"), "T", "what");
        for text in [
            "x=\"0.0\" y=\"13.5\" textLength=\"16.8\">ab<",
            "x=\"58.8\" y=\"13.5\" textLength=\"16.8\">4G<",
            "x=\"42.0\" y=\"13.5\" textLength=\"8.4\" fill=\"#161b22\">y<",
        ] {
            assert!(svg.contains(text), "{text}\n{svg}");
        }
    }

    #[test]
    fn lines_that_stay_are_drawn_once() {
        let at = Duration::from_secs;
        let screens = [
            (at(1), screen(b"stays\r\nfirst")),
            (at(2), screen(b"stays\r\nthen")),
            (at(3), screen(b"stays\r\nfirst")),
        ];
        let svg = animation(&screens, at(1), "T", "what");
        assert_eq!(svg.matches(">stays<").count(), 1);
        assert_eq!(svg.matches(">first<").count(), 1);
        let frames = "0.000%{opacity:1}33.333%{opacity:0}66.667%{opacity:1}}";
        assert!(svg.contains(frames), "{svg}");
        assert!(svg.contains("0%{opacity:0}33.333%{opacity:1}66.667%{opacity:0}}"), "{svg}");
    }

    #[test]
    fn colors_of_a_terminal_have_their_values() {
        assert_eq!(indexed(1), "#ff7b72");
        assert_eq!(indexed(16), "#000000");
        assert_eq!(indexed(231), "#ffffff");
        assert_eq!(indexed(232), "#080808");
    }
}
