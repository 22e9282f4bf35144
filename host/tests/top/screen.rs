// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the screen shows, and what keys do to daemons.

use std::fs;
use std::time::Instant;

use serde_json::json;

use super::{Host, MIB, SOON};

#[test]
fn keys_set_targets_and_pause_and_reclaim() {
    let mut host = Host::new();
    let web = host.daemon("web");
    let mut guest = host.guest();
    guest.use_balloon().unwrap();
    let top = host.top(160, 24);
    top.wait_for(SOON, |text| text.contains("web") && text.contains("64M")).unwrap();
    top.press("t60M\r").unwrap();
    top.wait_for(SOON, |text| text.contains("expected at least")).unwrap();
    assert_eq!(web.get("/v1/target").unwrap()["bytes"], 0, "refused");
    top.press("\u{7f}\u{7f}\u{7f}").unwrap();
    top.press("leave 48m\r").unwrap();
    top.wait_for(SOON, |text| text.contains("web: the target takes 16M, leaves 48M")).unwrap();
    assert_eq!(web.get("/v1/target").unwrap()["bytes"], 16 * MIB);
    top.press("p").unwrap();
    top.wait_for(SOON, |text| text.contains("paused by operator")).unwrap();
    assert_eq!(web.get("/v1/status").unwrap()["paused_by"], json!(["operator"]));
    top.wait_for(SOON, |text| text.contains("web") && text.contains("  paused  ")).unwrap();
    top.press("p").unwrap();
    top.wait_for(SOON, |text| text.contains("discarding goes on")).unwrap();
    // The guest never says its statistics, so that the reclaim goes on until it is interrupted.
    top.press("ry").unwrap();
    top.wait_for(SOON, |text| text.contains("reclaiming: ")).unwrap();
    // The first may come before the daemon has begun.
    let interrupted = |text: &str| text.contains("ended by interrupted");
    let is_shown = (0..10).any(|_| {
        top.press("x").unwrap();
        top.wait_for(SOON / 40, interrupted).is_ok()
    });
    assert!(is_shown, "{}", top.text());
}

#[test]
fn daemon_that_hangs_or_goes_stalls_nothing() {
    let mut host = Host::new();
    host.daemon("web");
    let _silent = host.silent("stuck");
    let top = host.top(120, 30);
    top.wait_for(SOON, |text| text.contains("no_frontend")).unwrap();
    let pressed = Instant::now();
    top.press("?").unwrap();
    top.wait_for(SOON, |text| text.contains("┌ Help")).unwrap();
    assert!(pressed.elapsed().as_secs_f64() < 1.5, "{:?}", pressed.elapsed());
    top.press("?").unwrap();
    top.wait_for(SOON, |text| text.contains("no answer") && !text.contains("┌ Help")).unwrap();
    let of_web = |text: &str| {
        text.lines().any(|line| line.starts_with("web") && line.contains("no_frontend"))
    };
    assert!(of_web(&top.text()), "{}", top.text());
    host.daemons[0].kill().unwrap();
    top.wait_for(SOON, |text| {
        text.contains("no daemon answers") || text.matches("no answer").count() == 2
    })
    .unwrap();
    fs::remove_file(host.path("web.ctl")).unwrap();
    top.wait_for(SOON, |text| text.contains("1 guest,") && !text.contains("web ")).unwrap();
    host.daemon("late");
    top.wait_for(SOON, |text| text.contains("late")).unwrap();
}

#[test]
fn small_terminal_shows_names_and_states() {
    let mut host = Host::new();
    host.daemon("web");
    let top = host.top(120, 30);
    top.wait_for(SOON, |text| text.contains("RESIDENT")).unwrap();
    top.resize(34, 10).unwrap();
    let shown = top
        .wait_for(SOON, |text| text.contains("no_frontend") && !text.contains("RESIDENT"))
        .unwrap();
    assert!(shown.contains("GUEST") && shown.contains("web"), "{shown}");
    top.resize(1, 1).unwrap();
    top.resize(120, 30).unwrap();
    top.wait_for(SOON, |text| text.contains("RESIDENT") && text.contains("web")).unwrap();
}
