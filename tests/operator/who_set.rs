// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log names the process that has set something.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::process::{Command, Stdio};

use rustix::process::geteuid;
use serde_json::json;
use vmm_integration::measure::host::wait_until;

use crate::controlled::{BINARY, Controlled, MIB, SOON, start};

/// The only new line of the log with `text`, once it is there.
fn said(one: &Controlled, text: &str) -> String {
    wait_until(SOON, std::time::Duration::from_millis(1), || {
        let log = one.daemon.log();
        let mut lines = log.lines().filter(|line| line.contains(text));
        match (lines.next(), lines.next()) {
            (Some(line), None) if log.ends_with('\n') => Ok(line.to_owned()),
            _ => Err(format!("{text} in {log}")),
        }
    })
    .unwrap()
}

/// What each command of `ctl` has the daemon log; the process and its user follow.
#[test]
fn setting_by_ctl_logged_with_its_process() {
    let one = start(&["--statistics", "--free-page-hints"]);
    let mut guest = one.attach();
    guest.use_balloon().unwrap();
    for (args, text) in [
        (&["target", "1M"][..], "target 1048576 bytes, "),
        (&["pause"], "paused, "),
        (&["resume"], "resumed, "),
        (&["pin", "0x1000", "4K"], " pinned 0x1000..0x2000, "),
        (&["unpin", "0x1000", "4K"], "unpinned 0x1000..0x2000, "),
        (&["unpark"], "unparked, "),
        (&["statistics-interval", "7"], "statistics interval 7 s, "),
        (&["hinting", "start"], "hinting started, "),
        (&["hinting", "stop"], "hinting stopped, "),
        (&["reset-counters"], "counters reset, "),
        (&["log-level", "warn"], "log level WARN, "),
        (&["log-level", "info"], "log level INFO, "),
    ] {
        let mut command = Command::new(BINARY);
        command.args(["ctl", "--control-socket"]).arg(&one.path).args(args);
        let mut client = command.stdout(Stdio::null()).spawn().unwrap();
        let by = format!("{text}by UID {}, PID {}", geteuid().as_raw(), client.id());
        assert!(client.wait().unwrap().success(), "{args:?}");
        let line = said(&one, text);
        assert!(line.ends_with(&by), "{line}\n{by}");
        assert!(line.contains(" INFO "), "{line}");
    }
}

#[test]
fn reclaim_logged_with_its_client() {
    let one = start(&["--statistics"]);
    let _guest = one.attach();
    // Its guest never answers.
    let answer = one.control.done("POST", "/v1/reclaim", r#"{"timeout_seconds":1}"#).unwrap();
    assert_eq!(answer["ended_by"], json!("silent"));
    let by = format!("by UID {}, PID {}", geteuid().as_raw(), std::process::id());
    assert!(said(&one, "ended by silent").ends_with(&by));
}

#[test]
fn question_and_refusal_log_nothing() {
    let one = start(&[]);
    one.control.done("POST", "/v1/resume", "").unwrap();
    said(&one, "resumed, ");
    for path in ["/v1/status", "/v1/target", "/v1/pins", "/v1/log-level", "/v1/counters"] {
        one.control.get(path).unwrap();
    }
    let body = json!({"bytes": MIB + 1}).to_string();
    assert_eq!(one.control.ask("PUT", "/v1/target", &body).unwrap().status, 400);
    one.control.done("POST", "/v1/pause", "").unwrap();
    said(&one, "paused, ");
    let log = one.daemon.log();
    assert_eq!(log.matches(", by UID ").count(), 2, "{log}");
}
