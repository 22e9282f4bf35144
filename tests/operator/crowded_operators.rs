// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many clients of the operators' sockets: none of them keeps another out.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;

const SOON: Duration = Duration::from_secs(30);
/// What the daemon serves at a time.
const MOST_CONNECTIONS: usize = 32;
const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// A daemon that is scraped over TCP, and where.
fn start() -> (DaemonProcess, SocketAddr) {
    let args = ["--metrics-address", "127.0.0.1:0"];
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, args).unwrap();
    assert!(daemon.wait_for_log("/metrics", SOON).unwrap(), "{}", daemon.log());
    let log = daemon.log();
    let address = log.split_once("metrics on http://").unwrap().1.split_once("/metrics").unwrap().0;
    let address = address.parse().unwrap();
    (daemon, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// One scrape on a connection that is kept; `None` if the daemon has closed it.
fn scrape_on(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(SCRAPE).ok()?;
    let (mut text, mut chunk) = (String::new(), [0; 65536]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return None,
            Ok(len) => text.push_str(std::str::from_utf8(&chunk[..len]).unwrap()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            // A process that was stopped and continued sees this, where a read has a timeout.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            if length.unwrap().parse() == Ok(body.len()) {
                return Some(text);
            }
        }
    }
}

/// A newcomer's scrape. On a machine too busy to send a request within the daemon's patience, the
/// second one counts.
fn scrape(address: SocketAddr) -> String {
    let text = (0..3).find_map(|_| scrape_on(&mut connect(address))).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    text
}

#[test]
fn idle_clients_keep_no_newcomer_out() {
    let (daemon, address) = start();
    let fresh = daemon.fd_count().unwrap();
    let idle: Vec<_> = (0..4 * MOST_CONNECTIONS).map(|_| connect(address)).collect();
    for _ in 0..100 {
        scrape(address);
        let held = daemon.fd_count().unwrap();
        assert!(held <= fresh + MOST_CONNECTIONS, "{held} descriptors instead of {fresh}");
    }
    drop(idle);
    wait_until(SOON, Duration::from_millis(1), || match daemon.fd_count().unwrap() {
        now if now == fresh => Ok(()),
        now => Err(format!("{now} descriptors instead of {fresh}")),
    })
    .unwrap();
}

/// More clients than places, all of which ask again and again for as long as they are let.
#[test]
fn busy_clients_keep_no_newcomer_out() {
    let (_daemon, address) = start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 * MOST_CONNECTIONS {
            scope.spawn(|| {
                let mut stream = connect(address);
                while !over.load(Ordering::Relaxed) {
                    if scrape_on(&mut stream).is_none() {
                        break;
                    }
                }
            });
        }
        for _ in 0..MOST_CONNECTIONS / 2 {
            scrape(address);
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Clients that send requests without end, and never leave by themselves.
#[test]
fn pipelining_clients_keep_no_newcomer_out() {
    let (_daemon, address) = start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..MOST_CONNECTIONS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let stream = connect(address);
                    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
                    thread::scope(|scope| {
                        scope.spawn(
                            move || while matches!(reader.read(&mut [0; 65536]), Ok(1..)) {},
                        );
                        let requests = SCRAPE.repeat(100);
                        while !over.load(Ordering::Relaxed) {
                            match writer.write(&requests) {
                                Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                                _ => {}
                            }
                        }
                        let _ = writer.shutdown(std::net::Shutdown::Both);
                    });
                }
            });
        }
        for _ in 0..5 {
            scrape(address);
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Their answers fit the kernel's buffers for a while, so that the daemon could go on writing.
#[test]
fn clients_that_never_read_keep_no_newcomer_out() {
    let (daemon, _) = start();
    let connect = || UnixStream::connect(daemon.control_socket()).unwrap();
    let deaf: Vec<_> = (0..MOST_CONNECTIONS + 8)
        .map(|_| {
            let mut stream = connect();
            stream.set_nonblocking(true).unwrap();
            while stream.write(SCRAPE).is_ok_and(|len| len == SCRAPE.len()) {}
            stream
        })
        .collect();
    // Each of them is spared for a second. Without the mend it takes more than fourteen.
    let mut newcomer = connect();
    newcomer.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    newcomer.write_all(SCRAPE).unwrap();
    let mut chunk = [0; 12];
    newcomer.read_exact(&mut chunk).unwrap();
    assert_eq!(&chunk, b"HTTP/1.1 200");
    drop(deaf);
}
