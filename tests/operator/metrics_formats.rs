// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a scraper gets that asks in its own way, and what the tool of Prometheus says to it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::fetch::prometheus::Prometheus;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

fn start() -> (DaemonProcess, ControlSocket) {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, ["--statistics"]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    (daemon, control)
}

#[test]
fn scraper_gets_the_format_it_asks_for() {
    let (_daemon, control) = start();
    for (fields, expected) in [
        ("", PLAIN),
        ("Accept: */*\r\n", PLAIN),
        ("Accept: text/plain\r\n", PLAIN),
        ("Accept: application/openmetrics-text\r\n", OPENMETRICS),
        (
            "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;\
             q=0.2,*/*;q=0.1\r\n",
            OPENMETRICS,
        ),
    ] {
        for path in ["/metrics", "/metrics?collect[]=x"] {
            let answer = control.ask_with("GET", path, fields, "").unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            let kind = format!("Content-Type: {expected}");
            assert!(answer.head.lines().any(|line| line == kind), "{fields}: {}", answer.head);
            assert_eq!(answer.body.ends_with("# EOF\n"), expected == OPENMETRICS);
        }
    }
}

#[test]
fn head_is_answered_without_a_body() {
    let (_daemon, control) = start();
    let mut stream: UnixStream = control.connect().unwrap();
    // The answer to what follows begins where the answer to HEAD ends.
    for path in ["/v1/status", "/metrics", "/v1/statistics"] {
        write!(stream, "HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    write!(stream, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let parts: Vec<_> = text.split("\r\n\r\n").collect();
    assert_eq!(parts.len(), 5, "{text}");
    let length = |part: &str| -> usize {
        let value = part.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        value.unwrap().parse().unwrap()
    };
    assert!(parts[..4].iter().all(|part| part.starts_with("HTTP/1.1 200 OK\r\n")), "{text}");
    assert_eq!(length(parts[0]), parts[4].len(), "as GET would have it");
    assert!(length(parts[1]) > 1000, "{text}");
    let answer = control.ask("POST", "/v1/status", "").unwrap();
    assert!(answer.head.contains("\r\nAllow: GET, HEAD\r\n"), "{answer:?}");
}

/// A page with every metric that there is.
fn page() -> String {
    let (daemon, control) = start();
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    assert!(guest.given_back(GpaRange::new(Gpa(8 * MIB), MIB).unwrap()).unwrap());
    let queue = guest.reporting_queue().unwrap();
    guest.submit_and_wait(queue, &[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
    control.ask("GET", "/metrics", "").unwrap().body
}

/// The rules of the format (Prometheus, "Exposition formats"), read by nothing of ours.
#[test]
fn plain_text_keeps_its_rules() {
    let page = page();
    let mut families = BTreeSet::new();
    let mut current = (String::new(), String::new());
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(!text.is_empty(), "{line}");
            assert!(families.insert(name.to_owned()), "{name} comes twice");
            let kind = lines.next().unwrap();
            let kind = kind.strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            current = (name.to_owned(), kind.to_owned());
            continue;
        }
        assert!(!line.starts_with('#'), "{line}");
        let end = line.find(['{', ' ']).unwrap();
        let suffix = line[..end].strip_prefix(&current.0).unwrap();
        let parts = ["_bucket", "_sum", "_count"];
        assert!(suffix.is_empty() != (current.1 == "histogram"), "{line}");
        assert!(suffix.is_empty() || parts.contains(&suffix), "{line}");
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
    }
    assert!(page.ends_with('\n') && families.len() > 10, "{page}");
}

#[test]
#[ignore = "needs promtool: cargo xtask test"]
fn promtool_has_nothing_to_say() {
    let mut command = Prometheus::ensure(&mut |_| ()).unwrap().promtool.command();
    let tool = command
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut tool = tool.unwrap();
    let page = page();
    tool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    assert!(said.status.success(), "{}\n{page}", String::from_utf8_lossy(&text));
    assert_eq!(String::from_utf8_lossy(&text), "");
}
