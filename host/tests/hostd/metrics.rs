// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All metrics of a host on one page.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use openmetrics_parser::openmetrics::parse_openmetrics;
use vmm_integration::fetch::prometheus::Prometheus;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

use crate::host::{Host, Hostd, PATIENCE, ask};

/// The samples whose name is this, by the value of their label `vm`.
fn by_vm(page: &str, name: &str) -> BTreeMap<String, f64> {
    let samples = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix("{vm=\""));
    let sample = |line: &str| {
        let (vm, rest) = line.split_once('"').unwrap();
        (vm.to_owned(), rest.rsplit_once(' ').unwrap().1.parse().unwrap())
    };
    samples.map(sample).collect()
}

fn of<const N: usize>(values: [(&str, f64); N]) -> BTreeMap<String, f64> {
    values.map(|(vm, value)| (vm.to_owned(), value)).into()
}

/// Waits until hostd has found so many sockets.
fn wait_for_guests(hostd: &Hostd, count: usize) {
    hostd.wait_until("all guests", |view| view["guests"].as_array().map(Vec::len) == Some(count));
}

#[test]
fn page_has_all_daemons_and_each_family_once() {
    let mut host = Host::new();
    host.daemon("a", &["--name", "web"]);
    let b = host.daemon("b", &["--statistics"]);
    let ram = Ram::new(&RamLayout::flat(256 << 20, Backing::Memfd)).unwrap();
    let _guest = Attachment::connect(&b.socket(), &ram, AttachOptions::default()).unwrap();
    let hostd = host.hostd(&[]);
    wait_for_guests(&hostd, 2);
    let page = hostd.page();
    let parsed = parse_openmetrics(&page).unwrap_or_else(|error| panic!("{error}\n{page}"));
    assert_eq!(parsed.families.len(), page.matches("# TYPE ").count());
    assert_eq!(by_vm(&page, "balloon_connected"), of([("web", 0.0), ("b", 1.0)]));
    assert_eq!(by_vm(&page, "balloon_memory_bytes"), of([("b", f64::from(256 << 20))]));
    assert_eq!(by_vm(&page, "balloon_host_daemon_up"), of([("web", 1.0), ("b", 1.0)]));
    assert!(by_vm(&page, "balloon_host_daemon_refused_lines").is_empty(), "{page}");
    assert!(
        page.contains("\nballoon_host_available_bytes ") && page.ends_with("\n# EOF\n"),
        "{page}"
    );
    // What a daemon says of itself, hostd says too, but for its label.
    let own = vmm_integration::control::ControlSocket::new(&host.path("b.ctl"), PATIENCE);
    let accept = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    let own = own.ask_with("GET", "/metrics", accept, "").unwrap().body;
    for family in own.lines().filter(|line| line.starts_with("# ") && *line != "# EOF") {
        assert_eq!(page.lines().filter(|line| *line == family).count(), 1, "{family}");
    }
}

#[test]
fn plain_text_is_the_default_over_tcp_too() {
    let mut host = Host::new();
    host.daemon("a", &[]);
    let hostd = host.hostd(&["--metrics-address", "127.0.0.1:0"]);
    wait_for_guests(&hostd, 1);
    let (head, body) = hostd.get("/metrics?x=y", "");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("\n# TYPE balloon_discarded_bytes_total counter\n"), "{body}");
    let log = hostd.log();
    let address = log.split_once("http://").unwrap().1.split_once("/metrics").unwrap().0;
    let ask = |path| ask(&mut TcpStream::connect(address).unwrap(), path, "");
    assert!(ask("/metrics").1.contains("balloon_host_daemon_up{vm=\"a\"} 1"));
    assert!(ask("/v1/host").0.starts_with("HTTP/1.1 404"));
}

/// Reads the request, and answers with this.
fn answer(mut stream: UnixStream, text: &str) {
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write_all(text.as_bytes());
}

fn page(mut stream: UnixStream, text: &str) {
    let _ = stream.read(&mut [0; 4096]);
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
}

#[test]
fn daemons_that_misbehave_spoil_nothing() {
    let mut host = Host::new();
    host.daemon("honest", &[]);
    host.daemon("other", &["--name", "other"]);
    host.impostor("silent", |mut stream| drop(stream.read_to_end(&mut Vec::new())));
    host.impostor("gone", drop);
    host.impostor("garbage", |stream| answer(stream, "SSH-2.0-x\r\n\r\n"));
    host.impostor("endless", |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'a'; 4096]).is_ok() {}
    });
    host.impostor("liar", |stream| {
        page(stream, "# TYPE balloon_connected counter\nballoon_connected_total{vm=\"other\"} 99999999999999999999\n\
                      # TYPE balloon_host_daemon_up gauge\nballoon_host_daemon_up{vm=\"honest\"} 0\n\
                      # TYPE balloon_target_bytes gauge\n# UNIT balloon_target_bytes bytes\nballoon_target_bytes{vm=\"other\"} 1e308\n\
                      } \n# EOF\nballoon_target_bytes 2\n");
    });
    let hostd = host.hostd(&[]);
    wait_for_guests(&hostd, 7);
    for _ in 0..2 {
        let began = Instant::now();
        let text = hostd.page();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        parse_openmetrics(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let up = by_vm(&text, "balloon_host_daemon_up");
        let answered: Vec<_> =
            up.iter().filter(|(_, up)| **up > 0.0).map(|(vm, _)| &**vm).collect();
        assert_eq!((up.len(), answered), (7, vec!["honest", "liar", "other"]), "{text}");
        assert_eq!(by_vm(&text, "balloon_connected"), of([("honest", 0.0), ("other", 0.0)]));
        let targets = of([("honest", 0.0), ("liar", 1e308), ("other", 0.0)]);
        assert_eq!(by_vm(&text, "balloon_target_bytes"), targets);
        assert_eq!(by_vm(&text, "balloon_host_daemon_refused_lines")["liar"], 2.0);
    }
}

#[test]
#[ignore = "needs promtool: cargo xtask test"]
fn promtool_takes_the_page_of_a_host() {
    let mut host = Host::new();
    host.daemon("a", &["--name", "a"]);
    host.daemon("b", &["--name", "b"]);
    let hostd = host.hostd(&[]);
    wait_for_guests(&hostd, 2);
    let page = hostd.get("/metrics", "").1;
    let mut promtool = Prometheus::ensure(&mut |_| ()).unwrap().promtool.command();
    let mut tool = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    tool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    assert!(said.status.success(), "{}\n{page}", String::from_utf8_lossy(&text));
    assert_eq!(String::from_utf8_lossy(&text), "");
}
