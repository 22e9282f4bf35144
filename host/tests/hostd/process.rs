// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Start, end, and what is asked of hostd.

use crate::host::{Host, Hostd, remove, run};
use rustix::process::Signal;

#[test]
fn hostd_ends_at_sigterm_and_removes_its_socket() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let host = Host::new();
        let mut hostd = host.hostd(&[]);
        hostd.signal(signal);
        assert_eq!(hostd.wait().code(), Some(0), "{}", hostd.log());
        assert!(!hostd.socket.exists());
        assert!(hostd.log().contains("shutting down"), "{}", hostd.log());
    }
}

#[test]
fn second_hostd_at_a_socket_is_refused() {
    let host = Host::new();
    let mut first = host.hostd(&[]);
    let mut second = Hostd::start(host.dir.path(), &[]);
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.log().contains("another process listens at"), "{}", second.log());
    // The socket of one that was killed is replaced.
    first.kill();
    assert!(first.socket.exists());
    host.hostd(&[]);
}

#[test]
fn sockets_that_come_and_go_are_shown() {
    let mut host = Host::new();
    let hostd = host.hostd(&[]);
    assert_eq!(hostd.view()["guests"].as_array().map(Vec::len), Some(0));
    host.daemon("a", &[]);
    let view = hostd.wait_until("one guest", |view| view["guests"][0]["name"] == "a");
    assert_eq!(view["state"], "no_policy");
    assert!(view["total_bytes"].as_u64() > view["available_bytes"].as_u64(), "{view}");
    remove(&host.path("a.ctl"));
    hostd.wait_until("none", |view| view["guests"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn status_shows_what_hostd_knows() {
    let mut host = Host::new();
    host.daemon("a", &[]);
    let hostd = host.hostd(&[]);
    let socket = hostd.socket.display().to_string();
    let shown = run(&["status", "--socket", &socket]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{shown:?}");
    assert!(
        text.starts_with("no_policy: ")
            && text.lines().last().is_some_and(|line| line.starts_with("a ")),
        "{text}"
    );
    let json = run(&["status", "--json", "--socket", &socket]);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&json.stdout)
            .ok()
            .map(|view| view["pid"].clone()),
        Some(hostd.pid().into())
    );
    drop(hostd);
    let silent = run(&["status", "--socket", &socket]);
    assert_eq!(silent.status.code(), Some(3), "{silent:?}");
}

#[test]
fn other_requests_are_refused() {
    let host = Host::new();
    let hostd = host.hostd(&[]);
    let control = hostd.control();
    let (head, body) = hostd.get("/v1/other", "");
    assert!(head.starts_with("HTTP/1.1 404") && body.contains("/v1/host"), "{head} {body}");
    let mut stream = control.connect().expect("hostd listens");
    std::io::Write::write_all(
        &mut stream,
        b"PUT /v1/host HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .expect("it reads");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).expect("it answers");
    assert!(text.starts_with("HTTP/1.1 405") && text.contains("GET, HEAD"), "{text}");
    // Clients that say nothing keep none from its place.
    let _silent: Vec<_> = (0..100).map(|_| control.connect().expect("hostd listens")).collect();
    hostd.view();
}

#[test]
fn address_that_others_reach_is_refused() {
    let host = Host::new();
    let mut hostd = Hostd::start(host.dir.path(), &["--metrics-address", "0.0.0.0:0"]);
    assert_eq!(hostd.wait().code(), Some(1));
    assert!(hostd.log().contains("expected a loopback address"), "{}", hostd.log());
}
