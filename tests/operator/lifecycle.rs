// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a process: how it starts, what it refuses, how it ends.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::measure::host::leave_dead_socket;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(20);

/// A GET_FEATURES: a session begins with a message.
const MESSAGE: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

fn spawn() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

/// Runs the daemon with a command line that it refuses.
fn refused(args: &[&str]) -> (Output, String) {
    let output = Command::new(BINARY).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was accepted: {text}");
    (output, text)
}

#[test]
fn ends_on_either_signal_and_removes_its_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = spawn();
        assert!(daemon.socket().exists());
        daemon.signal(signal).unwrap();
        let status = daemon.wait(SOON).unwrap().expect("it ends");
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        assert!(!daemon.socket().exists());
    }
}

#[test]
fn ends_with_a_frontend_connected() {
    let mut daemon = spawn();
    let mut frontend = UnixStream::connect(daemon.socket()).unwrap();
    frontend.write_all(&MESSAGE).unwrap();
    assert!(daemon.wait_for_log("frontend connected", SOON).unwrap());
    let ended = daemon.terminate(SOON).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists());
    assert!(daemon.log().contains("frontend disconnected"), "{}", daemon.log());
}

/// A shell starts background jobs with SIGINT ignored.
#[test]
fn sigint_ignored_at_start_still_ends_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let script = format!(
        "trap '' INT; {BINARY} --socket-path {0} 2>{0}.log & \
         until grep -q listening {0}.log; do :; done; kill -INT $!; wait $!",
        socket.display()
    );
    let status = Command::new("timeout").args(["20", "sh", "-c", &script]).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn unusable_socket_path_is_refused_and_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();

    let (_, text) = refused(&["--socket-path", &path("none/s")]);
    assert!(text.contains("cannot listen on") && text.contains("No such file"), "{text}");

    fs::write(path("file"), "precious").unwrap();
    let (_, text) = refused(&["--socket-path", &path("file")]);
    assert!(text.contains("is not a socket"), "{text}");
    assert_eq!(fs::read(path("file")).unwrap(), b"precious");

    let _listener = UnixListener::bind(path("live")).unwrap();
    let (_, text) = refused(&["--socket-path", &path("live")]);
    assert!(text.contains("already listens"), "{text}");
    assert!(UnixStream::connect(path("live")).is_ok());

    let (_, text) = refused(&["--socket-path", &path(&"x".repeat(120))]);
    assert!(text.contains("expected at most 107"), "{text}");

    for args in [&[][..], &["--socket-path"], &["--no-such-option"], &["--log-level", "loud"]] {
        let (output, text) = refused(args);
        assert_eq!(output.status.code(), Some(2), "{text}");
    }
}

#[test]
fn takes_the_place_of_a_daemon_that_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    leave_dead_socket(&path).unwrap();
    let mut child = Command::new(BINARY)
        .args(["--socket-path", path.to_str().unwrap()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stderr = child.stderr.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stderr), &mut line).unwrap();
    assert!(line.contains("listening on"), "{line}");
    assert!(UnixStream::connect(&path).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Waits until the daemon has served `sessions` frontends in all and holds as many descriptors and
/// threads as `fresh`, one that has just started.
fn wait_until_as_fresh(daemon: &DaemonProcess, sessions: usize, fresh: (usize, usize)) {
    vmm_integration::measure::host::wait_until(SOON, Duration::from_millis(1), || {
        let ended = daemon.log().matches("session: chains=").count();
        let held = held(daemon);
        if (ended, held) == (sessions, fresh) {
            Ok(())
        } else {
            Err(format!("{ended} sessions, (descriptors, threads) {held:?} instead of {fresh:?}"))
        }
    })
    .unwrap();
}

/// Descriptors and threads that the daemon holds.
fn held(daemon: &DaemonProcess) -> (usize, usize) {
    (daemon.fd_count().unwrap(), daemon.threads().unwrap().len())
}

#[test]
fn successive_frontends_are_served_without_leaks() {
    let daemon = spawn();
    let fresh = held(&daemon);
    for _ in 0..50 {
        let mut frontend = UnixStream::connect(daemon.socket()).unwrap();
        frontend.write_all(&MESSAGE).unwrap();
        frontend.read_exact(&mut [0; 20]).unwrap();
    }
    wait_until_as_fresh(&daemon, 50, fresh);
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let daemon = spawn();
    let fresh = held(&daemon);
    for garbage in [&[0xff_u8; 4096][..], &[0; 12], b"GET / HTTP/1.1\r\n\r\n", &[1, 0, 0]] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        // The daemon may hang up before all of it is written.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut answer = Vec::new();
        // Ends with the connection, by EOF or by a reset.
        match std::io::Read::read_to_end(&mut stream, &mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    // The last is no message, so it has no session.
    wait_until_as_fresh(&daemon, 3, fresh);
}
