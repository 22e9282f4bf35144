// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control socket refuses what cannot be, belongs to its user, and has a client.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::{leave_dead_socket, wait_until, wait_until_refused};

use crate::controlled::{BINARY, SOON, ctl, start};

/// Everything that can be wrong with a request, the answer's status and what its text says.
const REFUSED: &[(&str, &str, &str, u16, &str)] = &[
    ("GET", "/", "", 404, "expected one of the paths"),
    ("GET", "/v1/status/", "", 404, "/v1/status"),
    ("GET", "/v1/status?x", "", 404, "/v1/status"),
    ("GET", "http://x/v1/status", "", 404, "/v1/status"),
    ("DELETE", "/v1/status", "", 405, "expected one of the methods GET"),
    ("get", "/v1/status", "", 405, "GET"),
    ("GET", "/v1/status?", "", 404, "/v1/status"),
    ("POST", "/metrics?x", "", 405, "GET, HEAD"),
    ("POST", "/v1/pins", "", 405, "GET, HEAD, PUT, DELETE"),
    ("GET", "/v1/pins", "{}", 400, "expected no body"),
    ("GET", "/v1/status", "{}", 400, "expected no body"),
    ("POST", "/v1/pause", "now", 400, "expected no body"),
    ("PUT", "/v1/target", "", 400, r#"{"bytes": 536870912}"#),
    ("PUT", "/v1/target", "512M", 400, r#"{"bytes": 536870912}"#),
    ("PUT", "/v1/target", "[4096]", 400, r#"{"bytes": 536870912}"#),
    ("PUT", "/v1/target", "{}", 400, "one of the two sizes"),
    ("PUT", "/v1/target", r#"{"byte":4096}"#, 400, "unknown field `byte`, expected one of"),
    ("PUT", "/v1/target", r#"{"bytes":4096,"bytes":0}"#, 400, "duplicate field"),
    ("PUT", "/v1/target", r#"{"bytes":4096,"force":1}"#, 400, "expected a boolean"),
    ("PUT", "/v1/target", r#"{"bytes":"4096"}"#, 400, "expected u64"),
    ("PUT", "/v1/target", r#"{"bytes":4096.0}"#, 400, "expected u64"),
    ("PUT", "/v1/target", r#"{"bytes":-4096}"#, 400, "expected u64"),
    ("PUT", "/v1/target", r#"{"bytes":null}"#, 400, "one of the two sizes"),
    ("PUT", "/v1/target", r#"{"bytes":18446744073709551616}"#, 400, "expected u64"),
    ("PUT", "/v1/target", r#"{"bytes":4096}}"#, 400, "trailing characters"),
    ("PUT", "/v1/target", r#"{"bytes":4097}"#, 400, "multiple of 4096"),
    (
        "PUT",
        "/v1/target",
        r#"{"bytes":17592186044416,"force":true}"#,
        400,
        "at most 17592186040320 bytes",
    ),
    ("PUT", "/v1/target", "{\"bytes\":\"\u{1f388}\"}", 400, "expected u64"),
    ("PUT", "/v1/statistics-interval", r#"{"seconds":1}"#, 409, "statistics are not offered"),
    ("PUT", "/v1/statistics-interval", r#"{"seconds":4294967296}"#, 400, "expected u32"),
    ("POST", "/v1/statistics/refresh", "", 409, "--statistics"),
    ("PUT", "/v1/pins", r#"{"address":0,"bytes":0}"#, 400, "a range of no bytes"),
    ("PUT", "/v1/pins", r#"{"address":4096}"#, 400, "missing field `bytes`"),
    ("PUT", "/v1/pins", r#"{"address":18446744073709551615,"bytes":2}"#, 400, "passes the end"),
    ("DELETE", "/v1/pins", r#"{"address":0,"bytes":4096}"#, 404, "nothing is pinned at 0x0"),
    ("POST", "/v1/hinting/start", "", 409, "not offered"),
    ("POST", "/v1/hinting/stop", "", 409, "no round"),
    ("PUT", "/v1/log-level", r#"{"level":"loud"}"#, 400, "unknown variant `loud`, expected one of"),
    ("PUT", "/v1/log-level", r#"{"level":3}"#, 400, "expected"),
];

#[test]
fn what_cannot_be_is_answered_and_changes_nothing() {
    let one = start(&[]);
    let guest = one.attach();
    let before = one.status();
    let settled = |times| {
        one.control.done("PUT", "/v1/log-level", r#"{"level":"info"}"#).unwrap();
        wait_until(SOON, Duration::from_millis(1), || match one.daemon.log() {
            log if log.matches("log level").count() == times => Ok(log),
            log => Err(log),
        })
        .unwrap()
    };
    let log = settled(1);
    for (method, path, body, status, text) in REFUSED {
        let answer = one.control.ask(method, path, body).unwrap();
        assert_eq!(answer.status, *status, "{method} {path} {body}: {answer:?}");
        let error = answer.error().unwrap();
        assert!(error.contains(text), "{method} {path} {body}: {error}");
        if *status == 405 {
            assert!(answer.head.contains("\r\nAllow: "), "{answer:?}");
        }
    }
    assert_eq!(one.status(), before);
    let after = settled(2);
    assert_eq!(after.lines().count(), log.lines().count() + 1, "{after}");
    drop(guest);
}

#[test]
fn what_needs_a_guest_says_so() {
    let one = start(&["--statistics", "--free-page-hints"]);
    for path in ["/v1/statistics/refresh", "/v1/hinting/start"] {
        let answer = one.control.ask("POST", path, "").unwrap();
        assert_eq!(answer.status, 409);
        assert!(answer.error().unwrap().contains("no VMM is connected"), "{answer:?}");
    }
    // No guest could be asked so seldom.
    let body = r#"{"seconds":86401}"#;
    let answer = one.control.ask("PUT", "/v1/statistics-interval", body).unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.error().unwrap().contains("to 86400s, not 86401s"), "{answer:?}");
    assert_eq!(one.status()["statistics_interval_seconds"], 0.0);
    let features = AttachOptions::KNOWN_FEATURES & !(1 << 1) & !(1 << 3);
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let options = AttachOptions { features, ..AttachOptions::default() };
    let _guest = Attachment::connect(&one.daemon.socket(), &ram, options).unwrap();
    for (path, text) in
        [("/v1/statistics/refresh", "acked statistics"), ("/v1/hinting/start", "acked")]
    {
        let answer = one.control.ask("POST", path, "").unwrap();
        assert_eq!(answer.status, 409);
        assert!(answer.error().unwrap().contains(text), "{answer:?}");
    }
}

#[test]
fn pins_are_bounded() {
    let one = start(&[]);
    let pin = |address: u64| {
        let body = json!({"address": address, "bytes": 1}).to_string();
        one.control.ask("PUT", "/v1/pins", &body).unwrap()
    };
    let refused = (0..5000).map(|i| pin(i * 2)).find(|answer| answer.status != 200).unwrap();
    assert_eq!(refused.status, 409);
    assert!(refused.error().unwrap().contains("pinned"), "{refused:?}");
    let shown = one.shown(&["status"]);
    assert!(shown.lines().any(|line| line == "pins              1024"), "{shown}");
}

#[test]
fn control_socket_is_private_and_removed_at_exit() {
    let mut one = start(&[]);
    let mode = fs::symlink_metadata(&one.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let _client = UnixStream::connect(&one.path).unwrap();
    assert_eq!(one.daemon.terminate(SOON).unwrap().status.code(), Some(0));
    assert!(!one.path.exists());
}

#[test]
fn control_path_is_replaced_only_if_stale_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let refused = |control: &str| {
        let args = ["--socket-path", &path("s"), "--control-socket", control];
        let output = Command::new(BINARY).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!dir.path().join("s").exists(), "nothing is left behind");
        String::from_utf8(output.stderr).unwrap()
    };
    let _live = UnixListener::bind(path("live")).unwrap();
    assert!(refused(&path("live")).contains("already listens"));
    fs::write(path("file"), "precious").unwrap();
    assert!(refused(&path("file")).contains("is not a socket"));
    assert!(refused(&path("none/c")).contains("No such file"));

    leave_dead_socket(Path::new(&path("stale"))).unwrap();
    let args = ["--control-socket".into(), path("stale").into()];
    let options = DaemonOptions { args: args.into(), ..DaemonOptions::default() };
    let _daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
    ControlSocket::new(Path::new(&path("stale")), SOON).get("/v1/status").unwrap();
}

#[test]
fn the_client_tells_a_refusal_from_silence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (output, errors) = ctl(&path, &["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(errors.contains("no daemon answers at") && errors.contains("No such file"), "{errors}");

    // A listener that says nothing.
    let listener = UnixListener::bind(&path).unwrap();
    let (output, errors) = ctl(&path, &["--timeout", "1", "status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(errors.contains("did not answer within 1s"), "{errors}");

    // A peer that is not this daemon.
    let other = std::thread::spawn(move || {
        // The one that has given up comes first.
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"220 ready\r\n");
        }
        listener
    });
    let (output, errors) = ctl(&path, &["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(errors.contains("expected an answer of vhost-device-balloon"), "{errors}");
    drop(other.join().unwrap());
    wait_until_refused(&path).unwrap();
    let (output, errors) = ctl(&path, &["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(errors.contains("Connection refused"), "{errors}");
}

#[test]
fn client_with_a_silent_guest_times_out() {
    let one = start(&["--statistics"]);
    let _guest = one.attach();
    // Enough for the daemon to answer: it is the guest that does not.
    let (output, errors) = one.ctl(&["--timeout", "5", "statistics", "--refresh"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0));
    assert!(errors.contains("the guest did not tell its statistics within 5s"), "{errors}");
}

#[test]
fn the_client_shows_tables_or_the_answer_as_it_came() {
    let one = start(&[]);
    let raw = one.shown(&["--json", "status"]);
    assert_eq!(serde_json::from_str::<Value>(&raw).unwrap(), one.status());
    let shown = one.shown(&["status"]);
    assert!(shown.lines().any(|line| line == "VMM               none"), "{shown}");
    assert!(shown.lines().any(|line| line == "statistics        not offered"), "{shown}");
    let raw = one.shown(&["pause", "--json"]);
    assert_eq!(raw, "{\"paused_by\":[\"operator\"]}\n");
}

#[test]
fn nothing_of_a_guest_is_kept_open_by_who_looks() {
    let one = start(&[]);
    let fresh = one.daemon.fd_count().unwrap();
    for _ in 0..10 {
        let guest = one.attach();
        one.status();
        drop(guest);
    }
    wait_until(SOON, Duration::from_millis(1), || match one.daemon.fd_count().unwrap() {
        now if now == fresh => Ok(()),
        now => Err(format!("{now} descriptors instead of {fresh}")),
    })
    .unwrap();
}
