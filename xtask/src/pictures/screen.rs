// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `top` in a terminal, with keys that an operator would press.

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use terminal_screen::{Terminal, animation, picture};

use super::scene::{SOCKETS, Scene};

const WIDTH: u16 = 146;
const HEIGHT: u16 = 19;
const SOON: Duration = Duration::from_secs(30);
/// A reclaim may take a minute, and what the guest needs to confirm its end.
const RECLAIM: Duration = Duration::from_secs(80);
/// For a reader between two keys.
const PAUSE: Duration = Duration::from_millis(2500);
/// Between two keys of a word.
const TYPED: Duration = Duration::from_millis(160);
/// A screen that stays for less is one that is being drawn.
const STAYS: Duration = Duration::from_millis(20);
const TITLE: &str = "vhost-device-balloon ctl top";

/// What was recorded.
pub(super) struct Recorded {
    pub(super) picture: String,
    pub(super) animation: String,
    pub(super) asciicast: String,
}

/// Records `top`: all guests, a target that is refused and one that is taken, a pause, and a reclaim.
///
/// # Errors
/// If the screen does not show what a key did.
pub(super) fn record(scene: &Scene) -> Result<Recorded> {
    let mut command = Command::new(&scene.program);
    // The paths on the screen are short.
    command.current_dir(scene.dir.path()).args(["top", "--sockets", SOCKETS, "--interval", "1"]);
    command.arg("--hostd").arg(format!("{SOCKETS}/hostd.sock"));
    let mut top = Terminal::start(&mut command, WIDTH, HEIGHT)?;
    top.wait_for(SOON, |text| text.matches("  reporting").count() >= 3 && text.contains("/s"))?;
    thread::sleep(2 * PAUSE);
    top.press("G")?;
    thread::sleep(PAUSE);
    typed(&top, "t400M\r")?;
    top.wait_for(SOON, |text| text.contains("expected at least"))?;
    thread::sleep(2 * PAUSE);
    typed(&top, "\u{7f}\u{7f}\u{7f}\u{7f}leave 384M\r")?;
    top.wait_for(SOON, |text| text.contains("the target takes"))?;
    thread::sleep(PAUSE);
    typed(&top, "kp")?;
    top.wait_for(SOON, |text| text.contains("discarding is paused by operator"))?;
    // The board shows what is not discarded.
    scene
        .wait_for_any("/v1/counters", |counters| counters["skips"]["paused"].as_u64() > Some(0))?;
    thread::sleep(PAUSE);
    top.press("p")?;
    top.wait_for(SOON, |text| text.contains("discarding goes on"))?;
    thread::sleep(PAUSE);
    typed(&top, "kry")?;
    top.wait_for(RECLAIM, |text| text.contains("the reclaim squeezed"))?;
    thread::sleep(PAUSE);
    // A guest whose target hostd leases, and one that returns memory now.
    scene.wait_for_any("/v1/status", |status| status["lease_left_seconds"].is_f64())?;
    top.wait_for(RECLAIM, |text| text.contains("M/s  ") && text.contains("hostd: engaged"))?;
    let about = format!("The table of top:\n{}", top.text());
    let shown = picture(&top.screen(), TITLE, &about);
    thread::sleep(PAUSE);
    let mut recording = top.recording();
    top.press("q")?;
    let status = top.wait(SOON)?;
    anyhow::ensure!(status.success(), "top has ended: {status}");
    // The screen that it was started on is no part of it.
    recording.events.retain(|event| !event.bytes.is_empty());
    let screens = recording.screens(STAYS);
    let about = "top while guests use and free memory: a target is refused and another set, discarding \
                 is paused and resumed, and memory is reclaimed.";
    Ok(Recorded {
        picture: shown,
        animation: animation(&screens, PAUSE, TITLE, about),
        asciicast: recording.asciicast(TITLE),
    })
}

/// Types as a person does.
fn typed(top: &Terminal, keys: &str) -> Result<()> {
    for key in keys.chars() {
        top.press(&key.to_string())?;
        thread::sleep(TYPED);
    }
    Ok(())
}
