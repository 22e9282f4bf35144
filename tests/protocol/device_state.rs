// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state by a pipe whose other end does what it likes.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::raw::{Raw, all_features};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::pipe;
use vhost::vhost_user::message::FrontendReq as R;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const TIMEOUT: Duration = Duration::from_secs(20);
/// To load, with the device stopped.
const LOAD: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
/// It is done, and no descriptor comes back.
const TAKEN: u64 = 0x100;

fn start() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

/// A byte that was there when the daemon looked is gone when it reads, from a pipe that blocks.
#[test]
fn a_byte_that_is_stolen_stops_nothing() {
    let mut daemon = start();
    let mut raw = Raw::connect(&daemon, all_features());
    let (reader, writer) = pipe().unwrap();
    let asked = raw.ask(R::SET_DEVICE_STATE_FD, &LOAD, &[reader.as_raw_fd()]);
    assert_eq!(asked, Some(TAKEN), "{}", daemon.log());
    assert!(!fcntl_getfl(&reader).unwrap().contains(OFlags::NONBLOCK), "a shared flag was set");
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    for _ in 0..2000 {
        rustix::io::write(&writer, b" ").unwrap();
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        let _ = rustix::io::read(&reader, &mut [0]);
        fcntl_setfl(&reader, OFlags::empty()).unwrap();
    }
    drop(raw);
    daemon.session_summary(TIMEOUT).unwrap();
    // The next session has its own, though the pipe is open still.
    let mut raw = Raw::connect(&daemon, all_features());
    let (again, _open) = pipe().unwrap();
    let asked = raw.ask(R::SET_DEVICE_STATE_FD, &LOAD, &[again.as_raw_fd()]);
    assert_eq!(asked, Some(TAKEN), "{}", daemon.log());
    assert_eq!(daemon.terminate(TIMEOUT).unwrap().status.code(), Some(0));
}

/// A state that is none is said to be so, with the place and without the text.
#[test]
fn a_state_that_is_none_is_not_quoted() {
    let daemon = start();
    let mut raw = Raw::connect(&daemon, all_features());
    let (reader, writer) = pipe().unwrap();
    let asked = raw.ask(R::SET_DEVICE_STATE_FD, &LOAD, &[reader.as_raw_fd()]);
    assert_eq!(asked, Some(TAKEN), "{}", daemon.log());
    let long = format!("{{\"format\": \"{}\", \"version\": \"{}\"}}", "f", "x".repeat(50_000));
    std::io::Write::write_all(&mut std::fs::File::from(writer), long.as_bytes()).unwrap();
    assert_eq!(raw.ask(R::CHECK_DEVICE_STATE, &[], &[]), Some(1));
    assert!(daemon.wait_for_log("at line 1, column ", TIMEOUT).unwrap(), "{}", daemon.log());
    assert!(daemon.log().len() < 4096, "{} bytes", daemon.log().len());
}

/// Of a file that is neither the protocol's own failure is the answer, and the session goes on.
#[test]
fn a_state_comes_by_a_pipe_or_a_socket() {
    let daemon = start();
    let mut raw = Raw::connect(&daemon, all_features());
    let zero = std::fs::File::open("/dev/zero").unwrap();
    assert_eq!(raw.ask(R::SET_DEVICE_STATE_FD, &LOAD, &[zero.as_raw_fd()]), Some(0x101));
    assert!(daemon.wait_for_log("expected a pipe or a Unix", TIMEOUT).unwrap());
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(raw.ask(R::SET_DEVICE_STATE_FD, &LOAD, &[socket.as_raw_fd()]), Some(TAKEN));
}
