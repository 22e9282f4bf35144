// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator sees and sets, over the control socket of the daemon as a process.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::{leave_dead_socket, wait_until, wait_until_refused};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);

/// A daemon with a control socket.
struct Controlled {
    daemon: DaemonProcess,
    control: ControlSocket,
    path: PathBuf,
}

fn start(args: &[&str]) -> Controlled {
    let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
    let path = daemon.control_socket();
    Controlled { control: ControlSocket::new(&path, SOON), daemon, path }
}

impl Controlled {
    fn attach(&self) -> Attachment {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let socket = self.daemon.socket();
        Attachment::connect(&socket, &ram, AttachOptions::default()).unwrap()
    }

    fn status(&self) -> Value {
        self.control.get("/v1/status").unwrap()
    }

    fn ctl(&self, args: &[&str]) -> (Output, String) {
        ctl(&self.path, args)
    }

    /// What `ctl` prints when it does what it is asked.
    fn shown(&self, args: &[&str]) -> String {
        let (output, errors) = self.ctl(args);
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn ctl(socket: &Path, args: &[&str]) -> (Output, String) {
    let mut command = Command::new(BINARY);
    let output = command.args(["ctl", "--control-socket"]).arg(socket).args(args).output().unwrap();
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    (output, errors)
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// Whether the mebibyte at this address is given back when it is reported.
fn given_back(guest: &mut Attachment, at: u64) -> bool {
    guest.given_back(range(at, MIB)).unwrap()
}

#[test]
fn the_status_tells_who_is_connected_and_what_is_negotiated() {
    let one = start(&["--statistics", "--target", "8M"]);
    let status = one.status();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["connected"], false);
    assert_eq!(status["acked_features"], Value::Null);
    assert_eq!((&status["queues"], &status["memory"]), (&json!([]), &Value::Null));
    assert_eq!(status["target_bytes"], 8 * MIB);

    let mut guest = one.attach();
    let before = guest.get_config().unwrap();
    assert_eq!(before.num_pages, 2048);
    // As a driver that has inflated 1 MiB.
    guest.use_balloon().unwrap();
    guest.write_config(4, &256_u32.to_le_bytes()).unwrap();
    let status = one.status();
    assert_eq!(status["connected"], true);
    assert_eq!(status["actual_bytes"], MIB);
    let acked = status["acked_features"].as_array().unwrap();
    for feature in ["stats_vq", "page_reporting", "page_poison", "version_1"] {
        assert!(acked.contains(&feature.into()), "{status}");
    }
    let roles: Vec<_> = status["queues"].as_array().unwrap().iter().map(|q| &q["role"]).collect();
    assert_eq!(roles, ["inflate", "deflate", "statistics", "reporting", "reporting"]);
    let runs: Vec<_> = status["queues"].as_array().unwrap().iter().map(|q| &q["runs"]).collect();
    // Linux's driver has four; the specification has reports on the fifth.
    assert_eq!(runs, [true, true, true, true, false]);
    let memory = &status["memory"];
    assert_eq!(memory["resident_bytes"], guest.ram().resident_bytes().unwrap());
    let regions = memory["regions"].as_array().unwrap();
    let bytes: u64 = regions.iter().map(|region| region["bytes"].as_u64().unwrap()).sum();
    assert_eq!(
        (memory["bytes"].as_u64(), regions.len()),
        (Some(bytes), guest.ram().regions().len())
    );
    assert_eq!(regions[0]["page_bytes"], 4096);

    drop(guest);
    one.daemon.session_summary(SOON).unwrap();
    let status = one.status();
    assert_eq!((&status["connected"], &status["memory"]), (&json!(false), &Value::Null));
}

#[test]
fn what_is_asked_for_is_offered_and_nothing_else() {
    let known =
        ["must_tell_host", "stats_vq", "deflate_on_oom", "free_page_hint", "page_reporting"];
    for (args, expected) in [
        (&[][..], &["page_reporting"][..]),
        (&["--no-reporting"], &[]),
        (&["--no-reporting", "--deflate-on-oom"], &["deflate_on_oom"]),
        (&["--no-reporting", "--hugetlb"], &["must_tell_host"]),
        (&["--no-reporting", "--free-page-hints"], &["free_page_hint"]),
        (&["--no-reporting", "--statistics"], &["stats_vq"]),
    ] {
        let one = start(args);
        let status = one.status();
        let offered = status["offered_features"].as_array().unwrap();
        let device = known.into_iter().filter(|name| offered.contains(&Value::from(*name)));
        assert_eq!(device.collect::<Vec<_>>(), expected, "{args:?}");
        let guest = one.attach();
        assert_eq!(one.status()["acked_features"], status["offered_features"], "{args:?}");
        drop(guest);
    }
}

#[test]
fn a_target_reaches_the_guest() {
    let one = start(&[]);
    // With nobody connected it waits for who comes.
    assert_eq!(
        one.control.done("PUT", "/v1/target", r#"{"bytes":4096}"#).unwrap(),
        json!({"bytes": 4096, "leave_bytes": null, "memory_bytes": null, "pending": true})
    );
    let mut guest = one.attach();
    assert_eq!(guest.get_config().unwrap().num_pages, 1);
    one.control.done("PUT", "/v1/target", r#"{"bytes":1048576}"#).unwrap();
    assert!(guest.wait_config_change(SOON).unwrap());
    assert_eq!(guest.get_config().unwrap().num_pages, 256);
    let shown = one.shown(&["target", "2M"]);
    assert_eq!(shown, "balloon 2 MiB, leaves 38 MiB of 40 MiB to the guest\n");
    assert!(guest.wait_config_change(SOON).unwrap());
    assert_eq!(guest.get_config().unwrap().num_pages, 512);
    let (output, errors) = one.ctl(&["target", "2097153"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("multiple of 4096"), "{errors}");
    assert!(!guest.wait_config_change(Duration::ZERO).unwrap());
    assert_eq!(one.status()["target_bytes"], 2 * MIB);
}

/// A driver that lives on while its frontend is away reads its target only if it is told to.
#[test]
fn who_was_away_is_told_of_the_new_target() {
    let one = start(&[]);
    drop(one.attach());
    one.daemon.session_summary(SOON).unwrap();
    one.control.done("PUT", "/v1/target", r#"{"bytes":8192}"#).unwrap();
    for told in [true, false] {
        let mut guest = one.attach();
        let timeout = if told { SOON } else { Duration::ZERO };
        assert_eq!(guest.wait_config_change(timeout).unwrap(), told);
        assert_eq!(guest.get_config().unwrap().num_pages, 2);
        drop(guest);
    }
}

#[test]
fn a_target_that_the_guest_cannot_be_told_of_is_none() {
    let one = start(&["--target", "1M"]);
    let mut guest = one.attach();
    // It reads nothing, until its channel takes no more.
    let refused = (0..100_000).find_map(|i| {
        let target = json!({"bytes": 4096 * (i % 100)}).to_string();
        let answer = one.control.ask("PUT", "/v1/target", &target).unwrap();
        (answer.status != 200).then_some((answer, i))
    });
    let (answer, times) = refused.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.error().unwrap().contains("cannot announce the new target"), "{answer:?}");
    let last = 4096 * ((times - 1) % 100);
    assert_eq!(one.status()["target_bytes"], last);
    assert!(guest.wait_config_change(SOON).unwrap());
    one.control.done("PUT", "/v1/target", r#"{"bytes":0}"#).unwrap();
}

#[test]
fn who_is_paused_gives_nothing_back_until_it_is_resumed() {
    let one = start(&["--paused"]);
    let mut guest = one.attach();
    assert_eq!(one.status()["paused_by"], json!(["operator"]));
    assert!(!given_back(&mut guest, 8 * MIB));
    let resumed = one.control.done("POST", "/v1/resume", "").unwrap();
    assert_eq!(resumed, json!({"paused_by": []}));
    assert!(given_back(&mut guest, 8 * MIB));
    assert_eq!(one.shown(&["pause"]), "discarding: no, paused by operator\n");
    assert!(!given_back(&mut guest, 8 * MIB));
    assert_eq!(one.shown(&["resume"]), "discarding: yes\n");
    assert!(given_back(&mut guest, 8 * MIB));
    assert_eq!(one.control.get("/v1/counters").unwrap()["skipped"]["paused"]["bytes"], 2 * MIB);
}

#[test]
fn what_is_pinned_stays_and_the_rest_of_the_report_goes() {
    let one = start(&[]);
    let mut guest = one.attach();
    let pin = json!({"address": 8 * MIB + 4096, "bytes": 1}).to_string();
    one.control.done("PUT", "/v1/pins", &pin).unwrap();
    guest.ram().write_pattern(range(8 * MIB, MIB), 1).unwrap();
    let queue = guest.reporting_queue().unwrap();
    guest.submit_and_wait(queue, &[Buffer::writable(Gpa(8 * MIB), 1 << 20)]).unwrap();
    guest.ram().verify_pattern(range(8 * MIB + 4096, 4096), 1).unwrap();
    assert!(guest.ram().is_zero(range(8 * MIB, 4096)).unwrap());
    assert!(guest.ram().is_zero(range(8 * MIB + 8192, MIB - 8192)).unwrap());
    let pins = json!([{"address": 8 * MIB + 4096, "bytes": 1, "times": 1}]);
    assert_eq!(one.status()["pins"], pins);

    let (output, errors) = one.ctl(&["unpin", "0x801000", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("nothing is pinned at 0x801000"), "{errors}");
    one.shown(&["unpin", "0x801000", "1"]);
    assert!(given_back(&mut guest, 8 * MIB));
    assert_eq!(one.status()["pins"], json!([]));
}

#[test]
fn statistics_are_asked_for_and_shown_with_their_age() {
    let one = start(&["--statistics"]);
    let mut guest = one.attach();
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    // Its first buffer tells nothing, as Linux's may.
    let buffer = Buffer::readable(guest.scratch().start(), 20);
    guest.ram().write(guest.scratch().start(), &[0; 20]).unwrap();
    guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    guest.publish(queue).unwrap();
    assert_eq!(one.control.get("/v1/statistics").unwrap()["sample"], Value::Null);
    assert_eq!(one.shown(&["statistics"]), "The guest has sent no statistics yet.\n");

    std::thread::scope(|scope| {
        let shown = scope.spawn(|| one.shown(&["statistics", "--refresh"]));
        // The buffer comes back, and goes out again with what is wanted.
        assert!(guest.wait_used(queue, SOON).unwrap().is_some());
        let told = [&4_u16.to_le_bytes()[..], &MIB.to_le_bytes(), &5_u16.to_le_bytes(), &[7; 8]];
        guest.ram().write(guest.scratch().start(), &told.concat()).unwrap();
        guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
        guest.publish(queue).unwrap();
        let shown = shown.join().unwrap();
        let line = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("free_bytes").ends_with(" 1 MiB"), "{shown}");
        assert!(line("oom_kills").ends_with(" not sent"), "{shown}");
    });
    let sample = &one.control.get("/v1/statistics").unwrap()["sample"];
    assert_eq!(sample["values"]["free_bytes"], MIB);
    assert_eq!(sample["values"].as_object().unwrap().len(), 16);
    assert!(sample["age_seconds"].as_f64().unwrap() >= 0.0);
    let metrics = one.control.ask("GET", "/metrics", "").unwrap().body;
    assert!(
        metrics.contains("balloon_guest_statistics{name=\"free_bytes\"} 1048576\n"),
        "{metrics}"
    );

    // By the clock, too.
    one.control.done("PUT", "/v1/statistics-interval", r#"{"seconds":1}"#).unwrap();
    assert!(guest.wait_used(queue, SOON).unwrap().is_some());
    one.shown(&["statistics-interval", "0"]);
    assert_eq!(one.status()["statistics_interval_seconds"], 0.0);
}

#[test]
fn hinting_is_started_and_stopped() {
    let one = start(&["--statistics", "--free-page-hints"]);
    let mut guest = one.attach();
    let started = one.control.done("POST", "/v1/hinting/start", "").unwrap();
    assert_eq!(started["state"], json!("running"));
    // 0 and 1 mean that it is over.
    let id = started["requested_id"].as_u64().unwrap();
    assert!(id >= 2, "{started}");
    assert!(guest.wait_config_change(SOON).unwrap());
    assert_eq!(u64::from(guest.get_config().unwrap().free_page_hint_cmd_id), id);
    let (output, errors) = one.ctl(&["hinting", "start"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("under way"), "{errors}");
    assert_eq!(one.shown(&["hinting", "stop"]), "hinting: stopped\n");
    assert!(guest.wait_config_change(SOON).unwrap());
    assert_eq!(guest.get_config().unwrap().free_page_hint_cmd_id, 1);
}

#[test]
fn counters_are_reset_and_metrics_go_on() {
    let one = start(&["--metrics-address", "127.0.0.1:0"]);
    let mut guest = one.attach();
    assert!(given_back(&mut guest, 8 * MIB));
    let counters = one.control.get("/v1/counters").unwrap();
    assert_eq!(
        (&counters["reporting"]["bytes"], &counters["bytes_discarded"]),
        (&json!(MIB), &json!(MIB))
    );
    let shown = one.shown(&["counters"]);
    assert!(
        shown.lines().any(|line| line.starts_with("bytes_discarded ") && line.ends_with(" 1 MiB")),
        "{shown}"
    );
    assert_eq!(one.shown(&["reset-counters"]), "All counters are 0.\n");
    assert_eq!(one.control.get("/v1/counters").unwrap()["bytes_discarded"], 0);

    let over_unix = one.control.ask("GET", "/metrics", "").unwrap();
    assert!(over_unix.head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"));
    let over_tcp = scrape(metrics_address(&one.daemon), "GET", "/metrics");
    for text in [&over_unix.body, &over_tcp, &one.shown(&["metrics"])] {
        for line in [
            "balloon_connected 1",
            "balloon_chains_total{queue=\"reporting\"} 1",
            "balloon_named_bytes_total{queue=\"reporting\"} 1048576",
            "balloon_discarded_bytes_total 1048576",
            "balloon_discard_calls_total 1",
            "balloon_skipped_bytes_total{reason=\"pinned\"} 0",
            "balloon_errors_total{errno=\"EPERM\"} 0",
            "balloon_chain_seconds_count 1",
            "balloon_chain_seconds_bucket{le=\"+Inf\"} 1",
            &format!("balloon_resident_bytes {}", guest.ram().resident_bytes().unwrap()),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }
}

fn metrics_address(daemon: &DaemonProcess) -> SocketAddr {
    // The daemon says it after its socket is there, which is what its start waits for.
    assert!(daemon.wait_for_log("/metrics", SOON).unwrap(), "{}", daemon.log());
    let log = daemon.log();
    let address = log.split_once("metrics on http://").unwrap().1.split_once("/metrics").unwrap().0;
    address.parse().unwrap()
}

fn scrape(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn over_tcp_there_are_metrics_and_nothing_else() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let one = start(&["--metrics-address", address]);
        let address = metrics_address(&one.daemon);
        assert!(address.ip().is_loopback());
        assert!(scrape(address, "GET", "/metrics").starts_with("HTTP/1.1 200 "));
        assert!(scrape(address, "GET", "/metrics?module=x&y").starts_with("HTTP/1.1 200 "));
        assert!(scrape(address, "POST", "/metrics").starts_with("HTTP/1.1 405 "));
        for (method, path) in [("GET", "/v1/status"), ("POST", "/v1/pause"), ("GET", "/")] {
            assert!(scrape(address, method, path).starts_with("HTTP/1.1 404 "), "{path}");
        }
        assert_eq!(one.status()["paused_by"], json!([]));
    }
}

#[test]
fn the_log_says_more_when_it_is_told_to() {
    let one = start(&[]);
    let mut guest = one.attach();
    assert!(given_back(&mut guest, 8 * MIB));
    assert!(!one.daemon.log().contains(" DEBUG "));
    one.shown(&["log-level", "debug"]);
    assert!(given_back(&mut guest, 8 * MIB));
    assert!(one.daemon.wait_for_log(" DEBUG vhost_device_balloon::vhost_user", SOON).unwrap());
    assert_eq!(one.status()["log_level"], "debug");
    one.control.done("PUT", "/v1/log-level", r#"{"level":"off"}"#).unwrap();
    assert!(given_back(&mut guest, 8 * MIB));
    // What was logged is written when it has ended.
    let mut one = one;
    one.daemon.terminate(SOON).unwrap();
    let log = one.daemon.log();
    assert_eq!(log.matches("ranges named").count(), 1, "{log}");
}

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
    ("GET", "/v1/pins", "", 405, "PUT, DELETE"),
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
fn the_socket_is_for_its_user_and_goes_with_the_daemon() {
    let mut one = start(&[]);
    let mode = fs::symlink_metadata(&one.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let _client = UnixStream::connect(&one.path).unwrap();
    assert_eq!(one.daemon.terminate(SOON).unwrap().status.code(), Some(0));
    assert!(!one.path.exists());
}

#[test]
fn a_stale_control_socket_is_replaced_and_anything_else_refused() {
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

    // Somebody who listens and says nothing.
    let listener = UnixListener::bind(&path).unwrap();
    let (output, errors) = ctl(&path, &["--timeout", "1", "status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(errors.contains("did not answer within 1s"), "{errors}");

    // Somebody who is not this daemon.
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
fn the_client_does_not_wait_for_a_silent_guest_for_ever() {
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
