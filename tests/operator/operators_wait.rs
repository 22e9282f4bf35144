// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operators whose answer waits for a discarding call that the VMM holds up: nothing else waits.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use serde_json::json;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_integration::measure::inode_lock::InodeLock;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A guest whose report is in a discarding call that does not end before the lock is released.
struct Busy {
    /// The first that goes: a process in such a call cannot even be killed.
    lock: InodeLock,
    daemon: DaemonProcess,
    control: ControlSocket,
    guest: Attachment,
}

fn report(at: u64) -> Buffer {
    Buffer::writable(Gpa(at), 1 << 20)
}

fn range(at: u64) -> GpaRange {
    GpaRange::new(Gpa(at), MIB).unwrap()
}

fn start() -> Busy {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, [""; 0]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    ram.write_pattern(range(8 * MIB), 1).unwrap();
    ram.write_pattern(range(10 * MIB), 1).unwrap();
    let segment = ram.segments(range(8 * MIB)).next().unwrap();
    let file = ram.file(ram.regions()[segment.region].file);
    // A byte that nothing here looks at. Declared last, so that it goes first if this panics.
    let lock = InodeLock::hold(file, 0).unwrap();
    let queue = guest.reporting_queue().unwrap();
    guest.ring(queue).unwrap().add_chain(&[report(8 * MIB)]).unwrap();
    guest.publish(queue).unwrap();
    wait_until(SOON, LOOK_EVERY, || {
        let call = format!("{} ", libc::SYS_fallocate);
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let calls = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("syscall")));
        let discards = calls.into_iter().any(|now| now.is_ok_and(|now| now.starts_with(&call)));
        if discards { Ok(()) } else { Err("no discarding call".to_owned()) }
    })
    .unwrap();
    Busy { lock, daemon, control, guest }
}

/// Sends a request, and waits until the daemon has read it.
fn begin(one: &Busy, request: &str) -> UnixStream {
    let mut stream = one.control.connect().unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn nothing_has_come(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let nothing = (&*stream).read(&mut [0]).is_err();
    stream.set_nonblocking(false).unwrap();
    nothing
}

/// What comes until the daemon has sent this many answers.
fn answers(stream: &mut UnixStream, count: usize) -> String {
    let (mut text, mut chunk) = (String::new(), [0; 4096]);
    while text.matches("HTTP/1.1 ").count() < count || !text.ends_with("}\n") {
        let len = stream.read(&mut chunk).unwrap();
        assert!(len > 0, "{text}");
        text.push_str(std::str::from_utf8(&chunk[..len]).unwrap());
    }
    text
}

/// The VMM holds the file for as long as it likes. Who pauses is answered when that has ended, and
/// everything else at once.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn pause_waits_for_the_call_alone() {
    let mut one = start();
    // A request behind it waits for its turn.
    let both = request("POST", "/v1/pause", "") + &request("GET", "/v1/status", "");
    let mut pausing = begin(&one, &both);
    wait_until(SOON, LOOK_EVERY, || match one.control.get("/v1/status").unwrap() {
        status if status["paused_by"] == json!(["operator"]) => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
    // Newcomers take the places of idle connections, and not of one that waits for its answer.
    let crowd: Vec<_> = (0..100).map(|_| begin(&one, "")).collect();
    for _ in 0..20 {
        let status = one.control.get("/v1/status").unwrap();
        assert!(status["memory"]["resident_bytes"].is_u64(), "{status}");
        assert_eq!(one.control.ask("GET", "/metrics", "").unwrap().status, 200);
    }
    drop(crowd);
    assert!(nothing_has_come(&pausing), "the call is still under way");
    let queue = one.guest.reporting_queue().unwrap();
    assert!(one.guest.wait_used(queue, Duration::ZERO).unwrap().is_none());
    let freed = Instant::now();
    drop(one.lock);
    let text = answers(&mut pausing, 2);
    assert!(freed.elapsed() < Duration::from_secs(2), "by the event, not by a deadline");
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 2, "{text}");
    assert!(text.find("\"paused_by\"").unwrap() < text.find("\"version\"").unwrap(), "{text}");
    // From the answer on nothing goes; the call that had begun did.
    assert!(one.guest.wait_used(queue, SOON).unwrap().is_some());
    assert!(one.guest.ram().is_zero(range(8 * MIB)).unwrap());
    one.guest.submit_and_wait(queue, &[report(10 * MIB)]).unwrap();
    one.guest.ram().verify_pattern(range(10 * MIB), 1).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn pause_that_takes_long_says_that_it_holds() {
    let one = start();
    let pin = json!({"address": 8 * MIB, "bytes": MIB}).to_string();
    thread::scope(|scope| {
        for (method, path, body) in [("POST", "/v1/pause", ""), ("PUT", "/v1/pins", &*pin)] {
            let control = &one.control;
            scope.spawn(move || {
                let answer = control.ask(method, path, body).unwrap();
                assert_eq!(answer.status, 504, "{answer:?}");
                let error = answer.error().unwrap();
                assert!(error.contains("has not ended within 3s"), "{error}");
                assert!(error.contains("send the same request again"), "{error}");
            });
        }
    });
    let status = one.control.get("/v1/status").unwrap();
    assert_eq!(status["paused_by"], json!(["operator"]));
    assert_eq!(status["pins"][0]["address"], 8 * MIB);
    drop(one.lock);
    one.control.done("POST", "/v1/pause", "").unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn operators_that_hang_up_are_forgotten() {
    let one = start();
    let fresh = one.daemon.fd_count().unwrap();
    let waiting: Vec<_> = (0..10).map(|_| begin(&one, &request("POST", "/v1/pause", ""))).collect();
    wait_until(SOON, LOOK_EVERY, || match one.daemon.fd_count().unwrap() {
        now if now == fresh + 10 => Ok(()),
        now => Err(format!("{now} descriptors instead of {}", fresh + 10)),
    })
    .unwrap();
    drop(waiting);
    wait_until(SOON, LOOK_EVERY, || match one.daemon.fd_count().unwrap() {
        now if now == fresh => Ok(()),
        now => Err(format!("{now} descriptors instead of {fresh}")),
    })
    .unwrap();
    // Pausing has not become undone with it.
    assert_eq!(one.control.get("/v1/status").unwrap()["paused_by"], json!(["operator"]));
}
