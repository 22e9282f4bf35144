// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest model as a guest of its own, on the memory that it models.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::reporting::{Holding, TrackerKind};
use serde_json::{Value, json};
use vmm_integration::bare_guest::Line;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, BareGuest, GuestConfig};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const SECTION: u64 = 128 * MIB;
/// On a busy machine, by emulation.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Memory with one section for the guest's program, two for the model, and one that is not whole.
const SMALL: u64 = 512 * MIB;
/// Looks at one word in so many, where many guests boot.
const SPARSE: &str = "stride=64";

struct Host {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl Host {
    fn start(args: &[&str]) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
        let daemon = DaemonProcess::spawn_controlled(binary, args).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        Self { daemon, control }
    }

    fn boot(&self, memory_bytes: u64, command_line: &[&str], qemu_args: &[&str]) -> BareGuest {
        let config = GuestConfig {
            balloon: Balloon::VhostUser { socket: self.daemon.socket() },
            memory_bytes,
            cpus: 1,
            kernel_args: command_line.iter().map(|&word| word.to_owned()).collect(),
            qemu_args: qemu_args.iter().map(|&arg| arg.to_owned()).collect(),
            ..GuestConfig::default()
        };
        BareGuest::boot(&qemu::available().unwrap(), &config).unwrap()
    }

    fn number(&self, path: &str, pointer: &str) -> Option<u64> {
        self.control.get(path).unwrap().pointer(pointer).and_then(Value::as_u64)
    }
}

/// The sum of a value over all lines of a name.
fn sum(lines: &[Line], name: &str, value: &str) -> u64 {
    let of_name = lines.iter().filter(|line| line.name == name);
    of_name.map(|line| line.number(value).unwrap()).sum()
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_of_1_gib_checks_every_word() {
    let host = Host::start(&[]);
    let guest = host.boot(1 << 30, &["do=verify,balloon:64,reset,churn:2"], &[]);
    let lines = guest.finish(PATIENCE).unwrap();
    let pages = |name, value| sum(&lines, name, value);
    let used = pages("verified", "freed_pages") + lines[3].number("pages").unwrap();
    assert_eq!(used, 6 * SECTION / PAGE - 512, "a block is left for the watermark: {lines:?}");
    assert_eq!(pages("ballooned", "zero_pages"), 64 * MIB / PAGE);
    // A driver that attaches reports all that is free once more.
    assert_eq!(pages("reset", "reported_pages"), pages("verified", "reported_pages"));
    let summary = host.daemon.session_summary(PATIENCE).unwrap();
    let reported = pages("verified", "reported_pages")
        + pages("reset", "reported_pages")
        + pages("churned", "pages");
    assert_eq!(summary.bytes_reported, reported * PAGE);
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_reports_with_each_tracker() {
    let host = Host::start(&[]);
    for (index, tracker) in TrackerKind::ALL.iter().enumerate() {
        // Each value of the others occurs with some tracker.
        let holding = Holding::ALL[index % Holding::ALL.len()].name();
        let numbering = ["linux", "specification"][index / 2 % 2];
        let indirect = ["yes", "no"][index / 4 % 2];
        let words = [
            format!("tracker={}", tracker.name()),
            format!("holding={holding}"),
            format!("numbering={numbering}"),
            format!("indirect={indirect}"),
            format!("seed={index}"),
        ];
        let mut line: Vec<&str> = words.iter().map(String::as_str).collect();
        line.extend([SPARSE, "do=verify,churn:1"]);
        let lines = host.boot(SMALL, &line, &[]).finish(PATIENCE).unwrap();
        let reported = sum(&lines, "verified", "reported_pages");
        assert!(reported >= sum(&lines, "verified", "freed_pages"), "{line:?}: {lines:?}");
    }
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_notices_sabotage() {
    let host = Host::start(&[]);
    let failure = |words: &[&str]| {
        let guest = host.boot(384 * MIB, words, &[]);
        format!("{:#}", guest.finish(PATIENCE).unwrap_err())
    };
    for (sabotage, found) in [
        ("sabotage=report-held", "failed: 512 of"),
        ("sabotage=skip-freed", "failed: 512 of"),
        ("sabotage=write-freed", "failed: 1 of"),
    ] {
        let error = failure(&[sabotage, SPARSE]);
        assert!(error.contains(found), "{sabotage}: {error}");
    }
    let error = failure(&["sabotage=trust-all", "init=maybe"]);
    assert!(error.contains("init=maybe: expected one of yes, no"), "{error}");
    let error = failure(&["do=verfy"]);
    assert!(error.contains("command line: do=verfy: no such step: verfy"), "{error}");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_serves_targets_hints_and_statistics() {
    let host = Host::start(&["--statistics", "--free-page-hints"]);
    let mut guest = host.boot(SMALL, &[SPARSE, "do=serve:100"], &[]);
    guest.console().wait_for("serving", PATIENCE).unwrap();
    for bytes in [96 * MIB, 32 * MIB, 0] {
        host.control.done("PUT", "/v1/target", &json!({ "bytes": bytes }).to_string()).unwrap();
        let line = guest.console().wait_for("target", PATIENCE).unwrap();
        assert_eq!(line.number("pages").unwrap(), bytes / PAGE);
        wait_until(PATIENCE, LOOK_EVERY, || match host.number("/v1/status", "/actual_bytes") {
            Some(now) if now == bytes => Ok(()),
            now => Err(format!("{now:?} of {bytes} bytes in the balloon")),
        })
        .unwrap();
    }
    host.control.done("POST", "/v1/hinting/start", "").unwrap();
    let hinted = guest.console().wait_for("hinted", PATIENCE).unwrap();
    assert!(hinted.number("pages").unwrap() > 0);
    host.control.done("POST", "/v1/statistics/refresh", "").unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || {
        let statistics = host.control.get("/v1/statistics").unwrap();
        let total = statistics.pointer("/sample/values/total_bytes").and_then(Value::as_u64);
        if total == Some(2 * SECTION) { Ok(()) } else { Err(statistics.to_string()) }
    })
    .unwrap();
    guest.console().end_serving().unwrap();
    let lines = guest.finish(PATIENCE).unwrap();
    for value in ["reported_pages", "checked_pages"] {
        assert!(sum(&lines, "served", value) > 0, "{value}: {lines:?}");
    }
    assert_eq!(sum(&lines, "served", "targets"), 3);
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_takes_added_memory_online() {
    let host = Host::start(&[]);
    let (start, size) = (4_u64 << 30, SECTION);
    let step = format!("do=verify,grow:{start:x}:{},verify", size / MIB);
    let slots = ["-m", "512M,slots=1,maxmem=8G"];
    let mut guest = host.boot(SMALL, &[SPARSE, &step], &slots);
    guest.console().wait_for("waiting", PATIENCE).unwrap();
    guest.qmp().plug_memory("added", size, Some(start)).unwrap();
    let lines = guest.finish(PATIENCE).unwrap();
    assert_eq!(sum(&lines, "grown", "reported_pages"), size / PAGE);
}

/// A guest that looks at every page that the device calls zero.
const DETECTOR: [&str; 2] = ["init=yes", SPARSE];
const CLAIMING: [&str; 2] = ["--experimental-init-reported", "--experimental-init-on-inflate"];

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_finds_every_claimed_page_zero() {
    let host = Host::start(&CLAIMING);
    let line = [&DETECTOR[..], &["do=verify,balloon:16,reset,verify"]].concat();
    let lines = host.boot(384 * MIB, &line, &[]).finish(PATIENCE).unwrap();
    let claimed = |value| sum(&lines, "claimed", value);
    let reported =
        sum(&lines, "verified", "reported_pages") + sum(&lines, "reset", "reported_pages");
    assert_eq!(claimed("reported_pages"), reported, "nothing keeps a page: {lines:?}");
    assert_eq!(claimed("inflated_pages"), 16 * MIB / PAGE);

    // A pinned page keeps its report from being claimed, and one of the balloon by itself.
    for block in 0..SECTION / (64 * MIB) {
        let pin = json!({ "address": SECTION + block * 64 * MIB, "bytes": 1 }).to_string();
        host.control.done("PUT", "/v1/pins", &pin).unwrap();
    }
    let line = [&DETECTOR[..], &["do=balloon:120"]].concat();
    let lines = host.boot(384 * MIB, &line, &[]).finish(PATIENCE);
    assert!(format!("{:#}", lines.unwrap_err()).contains("failed: 2 inflated pages hold"));
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_notices_a_wrong_claim() {
    let host = Host::start(&[&CLAIMING[..], &["--paused"]].concat());
    let boot = |more: &[&str]| {
        let line = [&DETECTOR[..], more].concat();
        host.boot(384 * MIB, &line, &[]).finish(PATIENCE)
    };
    // Nothing is discarded, and nothing is called zero.
    let error = format!("{:#}", boot(&["do=verify"]).unwrap_err());
    assert!(error.contains("pages that are free hold something"), "{error}");
    let lines = boot(&["do=reset"]).unwrap();
    assert!(sum(&lines, "reset", "reported_pages") > 0, "{lines:?}");
    assert_eq!(sum(&lines, "claimed", "reported_pages"), 0, "{lines:?}");
    // A guest that takes all of it for zero finds its own data.
    let error = format!("{:#}", boot(&["do=verify", "sabotage=trust-all"]).unwrap_err());
    assert!(error.contains("failed: the device calls a reported page zero, and 0x"), "{error}");
}
