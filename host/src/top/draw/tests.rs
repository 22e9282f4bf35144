// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The screen and its keys, on a terminal in memory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use vhost_device_balloon::operator::{CountersView, StatusView};

use super::draw;
use crate::top::act::Action;
use crate::top::app::{App, Mode, Wanted};
use crate::top::host::Host;
use crate::top::row::Look;

const GIB: u64 = 1 << 30;

fn status(name: &str, more: &Value) -> StatusView {
    let mut status = json!({
        "name": name, "version": "1", "pid": 1, "went_back": false, "connected": true,
        "waiting_connections": 0, "driver": "reporting", "driver_hint": null, "refused": null,
        "offered_features": ["stats_vq"], "acked_features": ["stats_vq"],
        "queues": [{"index": 0, "role": "inflate", "runs": true}], "called_queues": 1,
        "target_bytes": GIB / 2, "base_target_bytes": GIB / 2, "lease_left_seconds": null,
        "target_refused": null, "reclaim_target_bytes": null, "actual_bytes": GIB / 4,
        "collecting_bytes": 0, "statistics_interval_seconds": 0.0,
        "hinting": {"state": "stopped", "requested_id": 0, "driver_id": null, "ranges": 0, "bytes": 0},
        "paused_by": [], "pins": [], "guest_total_bytes": 3 * GIB,
        "memory": {"bytes": 4 * GIB, "resident_bytes": GIB, "regions": []}, "log_level": "info",
    });
    for (field, value) in more.as_object().expect("an object") {
        status[field] = value.clone();
    }
    serde_json::from_value(status).expect("a status")
}

/// A look at a guest that has returned so many GiB, so many seconds after the first.
fn look(at: Instant, name: &str, returned: u64, faults: u64, more: &Value) -> Look {
    let counters: CountersView = serde_json::from_value(json!({
        "chains": {"reporting": returned * 10}, "ranges": {}, "named_bytes": {},
        "discarded_bytes": returned * GIB, "discard_calls": 0, "discard_failures": 0, "skips": {},
        "skipped_bytes": {}, "errors": {}, "chain_seconds": {"count": 0, "sum": 0.0, "buckets": []},
    }))
    .expect("counters");
    let sample = serde_json::from_value(json!({
        "age_seconds": 0.1,
        "values": {
            "total_bytes": 3 * GIB, "available_bytes": 2 * GIB, "major_faults": faults,
            "swapped_in_bytes": 0, "swapped_out_bytes": 0, "oom_kills": 0,
        },
    }))
    .expect("a sample");
    Look { at, status: status(name, more), counters, sample: Some(sample) }
}

/// Three guests, looked at twice: one reports, one is paused and one does not answer.
fn app() -> App {
    let mut app = App::default();
    let sockets: BTreeSet<PathBuf> =
        ["/run/a.ctl", "/run/b.ctl", "/run/c.ctl"].map(Into::into).into();
    app.found(&sockets);
    let start = Instant::now();
    let paused = json!({"paused_by": ["operator"], "memory": {"bytes": 2 * GIB, "resident_bytes": GIB, "regions": []}});
    for (second, returned) in [(0, 1), (2, 5)] {
        let at = start + Duration::from_secs(second);
        let faults = returned * 3;
        app.looked(Path::new("/run/a.ctl"), Ok(look(at, "web", returned, faults, &json!({}))));
        app.looked(Path::new("/run/b.ctl"), Ok(look(at, "db", 1, 0, &paused)));
    }
    app.looked(Path::new("/run/c.ctl"), Err("the daemon did not answer within 2s".to_owned()));
    app.host = Host {
        total_bytes: Some(64 * GIB),
        available_bytes: Some(48 * GIB),
        some_percent: Some(0.0),
        full_percent: Some(0.0),
        hostd: Some(json!({"state": "relaxed"})),
    };
    app
}

fn screen(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, app)).expect("in memory");
    let lines: Vec<_> = terminal.backend().to_string().lines().map(str::to_owned).collect();
    lines.iter().map(|line| line.trim_matches('"').trim_end().to_owned() + "\n").collect()
}

fn press(app: &mut App, keys: &str) -> Option<Wanted> {
    let mut wanted = None;
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            key => KeyCode::Char(key),
        };
        wanted = app.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
    wanted
}

/// The fields of the row that begins with this name.
fn fields(screen: &str, name: &str) -> Vec<String> {
    let line = screen.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{screen}"));
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn table_shows_each_guest_with_its_rates() {
    let text = screen(&app(), 170, 20);
    let web = ["web", "reporting", "4G", "512M", "-", "256M", "1G", "2G", "1G", "5G", "2G/s", "20"];
    assert_eq!(fields(&text, "web")[..12], web, "{text}");
    assert_eq!(fields(&text, "web")[12..], ["12", "faults"], "{text}");
    let db = fields(&text, "db");
    assert_eq!((db[1].as_str(), db.last().map(String::as_str)), ("paused", Some("operator")));
    assert_eq!(fields(&text, "c")[..4], ["c", "no", "answer", "-"], "{text}");
    assert!(text.contains("16G of 64G, 48G available"), "{text}");
    assert!(text.contains("3 guests, memory 6G, resident 2G, reclaimed 6G (2G/s)"), "{text}");
    assert!(text.contains("hostd: relaxed"), "{text}");
}

#[test]
fn counters_that_were_reset_have_no_rate() {
    let mut app = app();
    let at = Instant::now() + Duration::from_secs(9);
    app.looked(Path::new("/run/a.ctl"), Ok(look(at, "web", 2, 1, &json!({}))));
    let web = fields(&screen(&app, 170, 20), "web");
    assert_eq!(web[9..], ["2G", "-", "-", "-"]);
}

#[test]
fn screen_of_any_size_keeps_the_names() {
    let mut app = app();
    for mode in ["", "?", "xt512M", "\u{1b}r"] {
        press(&mut app, mode);
        for (width, height) in [(1, 1), (10, 5), (40, 12), (80, 24), (300, 90)] {
            let text = screen(&app, width, height);
            let lines = text.lines().count();
            assert_eq!(lines, usize::from(height), "{width}x{height}\n{text}");
        }
    }
    let app = self::app();
    for width in [20, 40, 60, 80, 100, 120] {
        let text = screen(&app, width, 24);
        assert!(fields(&text, "web").len() > 1 && text.contains("GUEST"), "{width}\n{text}");
        assert!(!text.contains('…'), "{width}\n{text}");
    }
}

#[test]
fn help_fits_a_small_terminal() {
    let mut app = app();
    press(&mut app, "?");
    let text = screen(&app, 80, 24);
    assert!(text.contains("select a guest") && text.contains("why discarding is paused"), "{text}");
    press(&mut app, "q");
    assert_eq!(app.mode, Mode::Table);
}

#[test]
fn order_follows_the_column_and_keeps_the_selection() {
    let mut app = app();
    let names = |app: &App| app.rows().iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&app), ["c", "db", "web"]);
    press(&mut app, "jj");
    assert_eq!(app.selected().map(|row| row.name.as_str()), Some("web"));
    press(&mut app, ">>");
    assert_eq!(names(&app), ["web", "db", "c"], "by memory");
    assert_eq!(app.selected_index(), Some(0));
    press(&mut app, "i");
    assert_eq!(
        (names(&app), app.selected_index()),
        (vec!["c".into(), "db".into(), "web".into()], Some(2))
    );
    // The guest that is selected goes.
    app.found(&["/run/b.ctl".into()].into());
    assert_eq!(app.selected().map(|row| row.name.as_str()), Some("db"));
    app.found(&BTreeSet::new());
    assert!(app.selected().is_none() && press(&mut app, "tprx").is_none());
    assert!(screen(&app, 80, 24).contains("No daemon"));
}

#[test]
fn target_is_written_checked_and_answered() {
    let mut app = app();
    let web = PathBuf::from("/run/a.ctl");
    press(&mut app, "jjt3500m");
    assert!(screen(&app, 120, 24).contains("takes 3.4G, leaves 596M"), "{}", screen(&app, 120, 24));
    let asked = press(&mut app, "\n");
    assert_eq!(asked, Some(Wanted::Act(web.clone(), Action::Take(3500 << 20))));
    let why = "the target leaves the guest less than its reserve";
    app.acted(&web, Action::Take(3500 << 20), Err(why.to_owned()));
    let text = screen(&app, 120, 24);
    assert!(text.contains(why) && text.contains("> 3500m"), "{text}");
    press(&mut app, "\u{8}\u{8}\u{8}\u{8}\u{8}");
    assert_eq!(press(&mut app, "nonsense\n"), None);
    assert!(screen(&app, 120, 24).contains("expected a size such as 512M"));
    press(&mut app, "\u{8}\u{8}\u{8}\u{8}\u{8}\u{8}\u{8}\u{8}leave 1G");
    assert!(screen(&app, 120, 24).contains("leaves 1G, takes 3G"));
    assert_eq!(press(&mut app, "\n"), Some(Wanted::Act(web.clone(), Action::Leave(GIB))));
    app.acted(&web, Action::Leave(GIB), Ok("the target takes 3G, leaves 1G".to_owned()));
    assert_eq!(app.mode, Mode::Table);
    assert!(screen(&app, 120, 24).contains("web: the target takes 3G, leaves 1G"));
    press(&mut app, "t\u{1b}");
    assert_eq!(app.mode, Mode::Table);
}

#[test]
fn reclaim_is_confirmed_shown_and_interrupted() {
    let mut app = app();
    let web = PathBuf::from("/run/a.ctl");
    press(&mut app, "jj");
    assert_eq!(press(&mut app, "rn"), None);
    assert_eq!(press(&mut app, "ry"), Some(Wanted::Act(web.clone(), Action::Reclaim)));
    let at = Instant::now() + Duration::from_secs(9);
    let squeezed = json!({"reclaim_target_bytes": 2 * GIB, "actual_bytes": GIB});
    app.looked(&web, Ok(look(at, "web", 5, 15, &squeezed)));
    let text = screen(&app, 120, 24);
    assert!(text.contains("reclaiming: 1G of 2G in the balloon"), "{text}");
    assert_eq!(fields(&text, "web")[1], "reclaiming");
    assert_eq!(press(&mut app, "x"), Some(Wanted::Act(web.clone(), Action::Interrupt)));
    app.acted(&web, Action::Interrupt, Ok("the reclaim is interrupted".to_owned()));
    app.acted(&web, Action::Reclaim, Ok("the reclaim squeezed 1G".to_owned()));
    let text = screen(&app, 120, 24);
    assert!(
        text.contains("web: the reclaim squeezed 1G") && !text.contains("reclaiming: "),
        "{text}"
    );
}

#[test]
fn pause_is_lifted_by_the_same_key() {
    let mut app = app();
    press(&mut app, "k");
    assert_eq!(press(&mut app, "p"), Some(Wanted::Act("/run/b.ctl".into(), Action::Resume)));
    press(&mut app, "j");
    assert_eq!(press(&mut app, "p"), Some(Wanted::Act("/run/a.ctl".into(), Action::Pause)));
    let ends = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut app, "t");
    assert_eq!(app.key(ends), Some(Wanted::Quit));
}

#[test]
fn names_cannot_move_the_cursor() {
    let mut app = app();
    app.looked(Path::new("/run/a.ctl"), Ok(look(Instant::now(), "\u{1b}[2Jx", 1, 1, &json!({}))));
    app.looked(Path::new("/run/c.ctl"), Err("\u{7}\u{9b}31m".to_owned()));
    let text = screen(&app, 120, 24);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}
