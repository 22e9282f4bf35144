// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest model as a guest of its own, on the memory that it models: its checks, each tracker, and faults
//! that it must notice. `every_vmm` has what happens to it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::reporting::{Holding, TrackerKind};
use serde_json::json;
use vmm_integration::bare_guest::Line;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::vmm::Vmm as _;
use vmm_integration::vmm::bare::BareSpec;
use vmm_integration::vmm::qemu::Qemu;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const SECTION: u64 = 128 * MIB;
/// On a busy machine, by emulation.
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory with one section for the guest's program, two for the model, and one that is not whole.
const SMALL: u64 = 512 * MIB;
/// Looks at one word in so many, where many guests boot.
const SPARSE: &str = "stride=64";

fn daemon(args: &[&str]) -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn_controlled(binary, args).unwrap()
}

/// Boots a guest in QEMU and returns its lines when it is done.
fn run(daemon: &DaemonProcess, memory_bytes: u64, words: &[&str]) -> anyhow::Result<Vec<Line>> {
    let spec = BareSpec {
        memory_bytes,
        growth_bytes: 0,
        hugetlb_page_bytes: None,
        files: 1,
        socket: daemon.socket(),
        command_line: words.iter().map(|&word| word.to_owned()).collect(),
    };
    Qemu.boot_bare(&spec)?.finish(PATIENCE)
}

/// The sum of a value over all lines of a name.
fn sum(lines: &[Line], name: &str, value: &str) -> u64 {
    let of_name = lines.iter().filter(|line| line.name == name);
    of_name.map(|line| line.number(value).unwrap()).sum()
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_of_1_gib_checks_every_word() {
    let daemon = daemon(&[]);
    let lines = run(&daemon, 1 << 30, &["do=verify,balloon:64,reset,churn:2"]).unwrap();
    let pages = |name, value| sum(&lines, name, value);
    let used = pages("verified", "freed_pages") + lines[3].number("pages").unwrap();
    assert_eq!(used, 6 * SECTION / PAGE - 512, "a block is left for the watermark: {lines:?}");
    assert_eq!(pages("ballooned", "zero_pages"), 64 * MIB / PAGE);
    // A driver that attaches reports all that is free once more.
    assert_eq!(pages("reset", "reported_pages"), pages("verified", "reported_pages"));
    let summary = daemon.session_summary(PATIENCE).unwrap();
    let reported = pages("verified", "reported_pages")
        + pages("reset", "reported_pages")
        + pages("churned", "pages");
    assert_eq!(summary.bytes_reported, reported * PAGE);
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_reports_with_each_tracker() {
    let daemon = daemon(&[]);
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
        let lines = run(&daemon, SMALL, &line).unwrap();
        let reported = sum(&lines, "verified", "reported_pages");
        assert!(reported >= sum(&lines, "verified", "freed_pages"), "{line:?}: {lines:?}");
    }
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_notices_sabotage() {
    let daemon = daemon(&[]);
    let failure = |words: &[&str]| {
        let error = run(&daemon, 384 * MIB, words).unwrap_err();
        format!("{error:#}")
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

/// A guest that looks at every page that the device calls zero.
const DETECTOR: [&str; 2] = ["init=yes", SPARSE];
const CLAIMING: [&str; 2] = ["--experimental-init-reported", "--experimental-init-on-inflate"];

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_finds_every_claimed_page_zero() {
    let daemon = daemon(&CLAIMING);
    let line = [&DETECTOR[..], &["do=verify,balloon:16,reset,verify"]].concat();
    let lines = run(&daemon, 384 * MIB, &line).unwrap();
    let claimed = |value| sum(&lines, "claimed", value);
    let reported =
        sum(&lines, "verified", "reported_pages") + sum(&lines, "reset", "reported_pages");
    assert_eq!(claimed("reported_pages"), reported, "nothing keeps a page: {lines:?}");
    assert_eq!(claimed("inflated_pages"), 16 * MIB / PAGE);
    // What the first verify has freed is allocated as zero by the second, and not cleared.
    let freed = lines.iter().find(|line| line.name == "verified").unwrap();
    assert_eq!(claimed("spared_pages"), freed.number("freed_pages").unwrap(), "{lines:?}");

    let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
    // A pinned page keeps its report from being claimed, and one of the balloon by itself.
    for block in 0..SECTION / (64 * MIB) {
        let pin = json!({ "address": SECTION + block * 64 * MIB, "bytes": 1 }).to_string();
        control.done("PUT", "/v1/pins", &pin).unwrap();
    }
    let line = [&DETECTOR[..], &["do=balloon:120"]].concat();
    let lines = run(&daemon, 384 * MIB, &line);
    assert!(format!("{:#}", lines.unwrap_err()).contains("failed: 2 inflated pages hold"));
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_notices_a_wrong_claim() {
    let daemon = daemon(&[&CLAIMING[..], &["--paused"]].concat());
    let boot = |more: &[&str]| {
        let line = [&DETECTOR[..], more].concat();
        run(&daemon, 384 * MIB, &line)
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
