// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator sees and sets, over the control socket of the daemon as a process.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use guest_driver::ram::{Gpa, GuestRam};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use serde_json::{Value, json};
use vmm_integration::daemon::DaemonProcess;

use crate::controlled::{MIB, SOON, given_back, range, start};

#[test]
fn status_shows_the_connection_and_its_features() {
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
    let known = [
        "must_tell_host",
        "stats_vq",
        "deflate_on_oom",
        "free_page_hint",
        "page_reporting",
        "device_init_reported",
        "device_init_on_inflate",
    ];
    for (args, expected) in [
        (&[][..], &["page_reporting"][..]),
        (&["--no-reporting"], &[]),
        (&["--no-reporting", "--deflate-on-oom"], &["deflate_on_oom"]),
        (&["--no-reporting", "--hugetlb"], &["must_tell_host"]),
        (&["--no-reporting", "--free-page-hints"], &["free_page_hint"]),
        (&["--no-reporting", "--statistics"], &["stats_vq"]),
        (&["--no-reporting", "--experimental-init-on-inflate"], &["device_init_on_inflate"]),
        (&["--experimental-init-reported"], &["page_reporting", "device_init_reported"]),
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
        json!({"bytes": 4096, "leave_bytes": null, "memory_bytes": null, "pending": true,
            "base_bytes": 4096, "lease_left_seconds": null})
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
fn paused_device_discards_nothing_until_resumed() {
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
    assert_eq!(one.control.get("/v1/counters").unwrap()["skipped_bytes"]["paused"], 2 * MIB);
}

#[test]
fn pinned_range_is_kept_and_rest_of_report_discarded() {
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
    assert!(metrics.contains("balloon_guest_free_bytes 1048576\n"), "{metrics}");

    // By the clock, too.
    one.control.done("PUT", "/v1/statistics-interval", r#"{"seconds":1}"#).unwrap();
    assert!(guest.wait_used(queue, SOON).unwrap().is_some());
    one.shown(&["statistics-interval", "0"]);
    assert_eq!(one.status()["statistics_interval_seconds"], 0.0);
}

#[test]
fn statistics_are_asked_for_before_the_kick() {
    let one = start(&["--statistics"]);
    let mut guest = one.attach();
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    let buffer = Buffer::readable(guest.scratch().start(), 20);
    guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    guest.publish(queue).unwrap();
    one.control.done("POST", "/v1/statistics/refresh", "").unwrap();
    assert!(guest.wait_used(queue, SOON).unwrap().is_some());
    // Another buffer is on the ring, and its kick still on the way.
    guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    guest.ring(queue).unwrap().publish().unwrap();
    one.control.done("POST", "/v1/statistics/refresh", "").unwrap();
    assert!(guest.wait_used(queue, SOON).unwrap().is_some(), "the request is lost");
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
        (&counters["named_bytes"]["reporting"], &counters["discarded_bytes"]),
        (&json!(MIB), &json!(MIB))
    );
    let shown = one.shown(&["counters"]);
    assert!(
        shown.lines().any(|line| line.starts_with("discarded_bytes ") && line.ends_with(" 1 MiB")),
        "{shown}"
    );
    assert_eq!(one.shown(&["reset-counters"]), "All counters are 0.\n");
    assert_eq!(one.control.get("/v1/counters").unwrap()["discarded_bytes"], 0);

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
            "balloon_discard_failures_total 0",
            "balloon_chain_seconds_count 1",
            "balloon_chain_seconds_bucket{le=\"+Inf\"} 1",
            &format!("balloon_memory_resident_bytes {}", guest.ram().resident_bytes().unwrap()),
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
