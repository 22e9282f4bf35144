// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Control clients that stall, flood, babble or hang up, while a guest is served.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::{main_thread_cpu_time, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const A_SECOND: Duration = Duration::from_secs(1);
/// What the daemon gives a client for a request, and how many it serves at a time.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_CONNECTIONS: usize = 32;

const STATUS: &str = "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n";
const METRICS: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

struct Setting {
    daemon: DaemonProcess,
    control: ControlSocket,
}

fn start() -> Setting {
    let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), [""; 0]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    Setting { daemon, control }
}

impl Setting {
    /// Runs `clients` while a guest reports, whose reports are all answered.
    fn beside_a_guest<T>(&self, clients: impl FnOnce() -> T) -> T {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
        let mut guest = Attachment::connect(&self.daemon.socket(), &ram, options).unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let reports = scope.spawn(|| {
                let range = GpaRange::new(Gpa(8 * MIB), MIB).unwrap();
                let mut reports = 0;
                while reports == 0 || !over.load(Ordering::Relaxed) {
                    ram.write_pattern(range, 1).unwrap();
                    let report = Buffer::writable(Gpa(8 * MIB), 1 << 20);
                    guest.submit_and_wait(2, &[report]).unwrap();
                    assert!(ram.is_zero(range).unwrap());
                    reports += 1;
                }
                reports
            });
            // Also if the clients panic, or nobody would tell.
            struct Over<'a>(&'a AtomicBool);
            impl Drop for Over<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let end = Over(&over);
            let done = clients();
            drop(end);
            assert!(reports.join().unwrap() > 0);
            done
        })
    }

    fn connect(&self) -> UnixStream {
        self.control.connect().unwrap()
    }

    /// Sends bytes and reads what comes until the daemon hangs up.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may have said what it thinks before it has all of it.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        String::from_utf8(answer).unwrap()
    }

    /// Waits until it holds as many descriptors as before.
    fn expect_descriptors(&self, fresh: usize) {
        wait_until(SOON, Duration::from_millis(1), || match self.daemon.fd_count().unwrap() {
            now if now == fresh => Ok(()),
            now => Err(format!("{now} descriptors instead of {fresh}")),
        })
        .unwrap();
    }

    /// Ends it, whatever its clients do.
    fn terminate(mut self) {
        let ended = self.daemon.terminate(SOON).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", self.daemon.log());
        assert!(!self.daemon.log().contains("panicked"), "{}", self.daemon.log());
    }
}

/// Every place is taken by a client that does not finish. A newcomer takes the place of one, and
/// the others are hung up on in the end.
#[test]
fn who_never_finishes_a_request_is_hung_up_on() {
    let one = start();
    let fresh = one.daemon.fd_count().unwrap();
    let since = Instant::now();
    // Said nothing, half a line, half a head, half a body.
    let said = [
        "",
        "GET /v1/sta",
        "GET / HTTP/1.1\r\nHost:",
        "PUT /v1/target HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n{",
    ];
    let mut slow: Vec<_> = (0..MOST_CONNECTIONS)
        .map(|i| {
            let mut stream = one.connect();
            stream.write_all(said[i % said.len()].as_bytes()).unwrap();
            stream
        })
        .collect();
    one.beside_a_guest(|| {
        thread::scope(|scope| {
            // One byte every now and then.
            for (i, stream) in slow.iter_mut().enumerate() {
                scope.spawn(move || {
                    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    loop {
                        match stream.read(&mut [0; 100]) {
                            Ok(0) => break,
                            Ok(_) => panic!("there is nothing to answer"),
                            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                        }
                        if i % said.len() > 0 && i >= 8 {
                            let _ = stream.write_all(b"x");
                        }
                    }
                });
            }
            assert_eq!(one.control.get("/v1/status").unwrap()["connected"], true);
            let after = since.elapsed();
            assert!(after < PATIENCE, "{after:?}");
        });
    });
    drop(slow);
    one.daemon.session_summary(SOON).unwrap();
    one.expect_descriptors(fresh);
    one.terminate();
}

#[test]
fn a_hundred_clients_at_once_are_all_answered() {
    let one = start();
    let fresh = one.daemon.fd_count().unwrap();
    one.beside_a_guest(|| {
        thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| one.control.get("/v1/status").unwrap());
            }
        });
    });
    one.daemon.session_summary(SOON).unwrap();
    one.expect_descriptors(fresh);
    one.terminate();
}

#[test]
fn garbage_is_answered_and_hung_up_on() {
    let one = start();
    let fresh = one.daemon.fd_count().unwrap();
    let random: Vec<u8> =
        (0..100_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes();
    let put = |body: &str| {
        let head = "PUT /v1/target HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let cases = [
        (random, "400"),
        (vec![0; 1 << 20], "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "400"),
        (b"\r\n".repeat(1 << 20), "431"),
        (vec![b'A'; 1 << 20], "431"),
        (head(&"A: b\r\n".repeat(10_000)), "431"),
        (head(&format!("A: {}\r\n", "b".repeat(1 << 20))), "431"),
        ([head("Content-Length: 57345\r\n"), vec![b' '; 57345]].concat(), "413"),
        (head("Content-Length: 18446744073709551615\r\n"), "413"),
        (head("Content-Length: 5\r\nContent-Length: 6\r\n"), "400"),
        (head("Transfer-Encoding: chunked\r\n"), "411"),
        // The largest that is read, and is no JSON, or is deeper than anybody reads.
        (put(&"[".repeat(57344)), "400"),
        (put(&"{\"a\":".repeat(57344 / 5)), "400"),
    ];
    one.beside_a_guest(|| {
        for (bytes, status) in cases {
            let answer = one.exchange(&bytes);
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{start:?}: {answer:?}");
            assert!(answer.contains("{\"error\":\"expected"), "{start:?}: {answer:?}");
        }
    });
    one.daemon.session_summary(SOON).unwrap();
    one.expect_descriptors(fresh);
    one.terminate();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let one = start();
    let text: String = (0..1000).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    let last = "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut stream = one.connect();
    let mut writer = stream.try_clone().unwrap();
    let all = text + last;
    let answers = one.beside_a_guest(|| {
        thread::scope(|scope| {
            scope.spawn(|| writer.write_all(all.as_bytes()).unwrap());
            let mut answers = String::new();
            stream.read_to_string(&mut answers).unwrap();
            answers
        })
    });
    assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 1000);
    let (_, end) = answers.rsplit_once("HTTP/1.1 ").unwrap();
    assert!(end.starts_with("200 ") && end.contains("\"connected\":true"), "{end}");
}

#[test]
fn client_disconnect_at_any_byte_frees_its_connection() {
    let one = start();
    let fresh = one.daemon.fd_count().unwrap();
    one.beside_a_guest(|| {
        for round in 0..200 {
            let mut stream = one.connect();
            let bytes = METRICS.repeat(20).into_bytes();
            let len = (round * 37) % bytes.len();
            stream.write_all(&bytes[..len]).unwrap();
            if round % 2 == 0 && len >= METRICS.len() {
                let _ = stream.read(&mut [0; 100]);
            }
        }
        one.control.get("/v1/status").unwrap();
    });
    one.daemon.session_summary(SOON).unwrap();
    one.expect_descriptors(fresh);
}

/// Clients that ask without end, and do not read: others have their turn, SIGTERM too.
#[test]
fn who_floods_delays_nobody() {
    let one = start();
    // Room for one more.
    let flooders: Vec<_> = (1..MOST_CONNECTIONS).map(|_| one.connect()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (i, stream) in flooders.iter().enumerate() {
            let (over, requests) = (&over, METRICS.repeat(100));
            let (mut reader, mut writer) =
                (stream.try_clone().unwrap(), stream.try_clone().unwrap());
            if i % 2 == 0 {
                // These read as fast as they can.
                scope.spawn(move || while matches!(reader.read(&mut [0; 65536]), Ok(1..)) {});
            }
            scope.spawn(move || {
                writer.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                while !over.load(Ordering::Relaxed) {
                    match writer.write(requests.as_bytes()) {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
            });
        }
        one.beside_a_guest(|| {
            for _ in 0..20 {
                // Its own time: how long that takes is for others on this machine to say as well.
                let before = main_thread_cpu_time(one.daemon.pid()).unwrap();
                one.control.get("/v1/status").unwrap();
                let spent = main_thread_cpu_time(one.daemon.pid()).unwrap() - before;
                assert!(spent < A_SECOND, "{spent:?} on others until it was our turn");
            }
        });
        // With all of them still at it.
        one.terminate();
        over.store(true, Ordering::Relaxed);
    });
    drop(flooders);
}

/// Every kind of client at a time, and SIGTERM.
#[test]
fn it_ends_with_clients_in_every_state() {
    let one = start();
    let kinds: [&[u8]; 6] = [
        b"",
        b"GET /v1",
        STATUS.as_bytes(),
        b"\0\0\0",
        &[b'\r'; 8192],
        &METRICS.repeat(100).into_bytes(),
    ];
    let clients: Vec<_> = (0..60)
        .map(|i| {
            let mut stream = one.connect();
            let _ = stream.write_all(kinds[i % kinds.len()]);
            stream
        })
        .collect();
    one.terminate();
    drop(clients);
}
