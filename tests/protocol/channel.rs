// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The connection to a frontend: `--fd`, state that migrates here, and messages that are none.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use std::time::{Duration, Instant};

use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);
const A_SECOND: Duration = Duration::from_secs(1);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

fn start() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

fn start_on(socket: impl Into<OwnedFd>) -> DaemonProcess {
    DaemonProcess::spawn_on(Path::new(BINARY), socket.into(), &DaemonOptions::default()).unwrap()
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

/// A report goes all the way through.
fn expect_served(guest: &mut Attachment) {
    let range = GpaRange::new(Gpa(8 * MIB), MIB).unwrap();
    guest.ram().write_pattern(range, 1).unwrap();
    let report = Buffer::writable(Gpa(8 * MIB), 1 << 20);
    guest.submit_and_wait(REPORTING, &[report]).unwrap();
    assert!(guest.ram().is_zero(range).unwrap());
}

/// The state of a device of which a driver acked `features`, in round `hint_id` of hinting, with
/// statistics polled every `seconds`, as it travels.
fn state_of(features: u64, hint_id: u32, seconds: u64) -> Vec<u8> {
    let state = serde_json::json!({
        "format": "vhost-device-balloon",
        "version": 1,
        "balloon": {
            "acked_features": features,
            "num_pages": 0,
            "free_page_hint_cmd_id": hint_id,
            "next_hint_cmd_id": 8,
            "poison_val": null,
            "statistics_interval": { "secs": seconds, "nanos": 0 },
        },
    });
    format!("{state}\n").into_bytes()
}

/// Or it would wait for the end of a round that nobody here has begun.
#[test]
fn driver_migrated_during_hinting_gets_the_round_end() {
    let args = vec!["--statistics".into(), "--free-page-hints".into()];
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
    let mut guest =
        Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
    let features = guest.features();
    let state = state_of(features, 7, 0);
    guest.load_state(&state).unwrap();
    assert!(guest.wait_config_change(TIMEOUT).unwrap());
    assert_eq!(guest.get_config().unwrap().free_page_hint_cmd_id, 1);
}

/// Nothing else happens that could remind the daemon of its timer.
#[test]
fn statistics_after_migration_poll_at_its_interval() {
    let options = DaemonOptions { args: vec!["--statistics".into()], ..DaemonOptions::default() };
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
    let mut guest =
        Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    let at = guest.scratch().start();
    let state = state_of(guest.features(), 0, 1);
    guest.load_state(&state).unwrap();
    let buffer = statistics(guest.ram(), at, 1);
    guest.submit_and_wait(queue, &[buffer]).unwrap();
}

/// The driver's buffer with the free memory in it (`VIRTIO_BALLOON_S_MEMFREE`), at `at`.
fn statistics(ram: &Ram, at: Gpa, free: u64) -> Buffer {
    let mut bytes = 4_u16.to_le_bytes().to_vec();
    bytes.extend(free.to_le_bytes());
    ram.write(at, &bytes).unwrap();
    Buffer::readable(at, 10)
}

/// By the daemon's timer, for as long as a frontend is connected.
#[test]
fn statistics_are_polled_in_their_interval() {
    let args = ["--statistics", "--statistics-interval=1"].map(Into::into).to_vec();
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
    for _ in 0..2 {
        // The timer starts after this, and returns one buffer a second at most.
        let begin = Instant::now();
        let mut guest =
            Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
        let queue = guest.index(BalloonQueue::Stats).unwrap();
        let at = guest.scratch().start();
        for free in 0..2 {
            let buffer = statistics(guest.ram(), at, free);
            guest.submit_and_wait(queue, &[buffer]).unwrap();
        }
        assert!(begin.elapsed() >= 2 * A_SECOND, "{:?}", begin.elapsed());
    }
}

#[test]
fn connected_socket_is_served_until_disconnect() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut daemon = start_on(theirs);
    let mut guest = Attachment::over(ours, &ram(), AttachOptions::default()).unwrap();
    expect_served(&mut guest);
    drop(guest);
    let status = daemon.wait(TIMEOUT).unwrap().expect("it ends by itself");
    assert_eq!(status.code(), Some(0), "{}", daemon.log());

    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut daemon = start_on(theirs);
    let mut guest = Attachment::over(ours, &ram(), AttachOptions::default()).unwrap();
    expect_served(&mut guest);
    assert_eq!(daemon.terminate(TIMEOUT).unwrap().status.code(), Some(0));
}

#[test]
fn listening_socket_is_served_and_its_file_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut daemon = start_on(UnixListener::bind(&path).unwrap());
    for _ in 0..2 {
        let mut guest = Attachment::connect(&path, &ram(), AttachOptions::default()).unwrap();
        expect_served(&mut guest);
    }
    assert_eq!(daemon.terminate(TIMEOUT).unwrap().status.code(), Some(0));
    assert!(path.exists());
}

#[test]
fn a_descriptor_that_is_no_frontend_is_refused() {
    let refused = |mut daemon: DaemonProcess| {
        let status = daemon.wait(TIMEOUT).unwrap().expect("it ends by itself");
        assert_eq!(status.code(), Some(1));
        daemon.log()
    };
    let socket = |family, kind| socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    let unconnected = socket(AddressFamily::UNIX, SocketType::STREAM);
    let datagrams = socket(AddressFamily::UNIX, SocketType::DGRAM);
    let network = socket(AddressFamily::INET, SocketType::STREAM);
    let null = File::open("/dev/null").unwrap().into();
    for fd in [unconnected, datagrams, network, null] {
        let log = refused(start_on(fd));
        assert!(log.contains("--fd 100: expected a Unix stream socket"), "{log}");
    }
    for (args, told) in [
        // None is ever so high; lower ones may be this process's, whose libraries leave some open.
        (&["--fd", "1000000"][..], "--fd 1000000: this descriptor is not open"),
        (&["--fd", "-1"], "-1"),
        (&["--fd", "3", "--socket-path", "/none/s"], "cannot be used with"),
        (&[], "--socket-path"),
    ] {
        let output = Command::new(BINARY).args(args).output().unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(told), "{text}");
    }
}

/// The end of a connection that the daemon closes.
fn expect_closed(mut stream: UnixStream) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn invalid_message_ends_the_session_with_the_reason() {
    let daemon = start();
    for (message, told) in [
        (&[1_u32, 1, 4097][..], "message 1 announces 4097 bytes, expected at most 4096"),
        (&[45, 1, 0], "message 45 is none of vhost-user's"),
        (&[3, 2, 0], "SET_OWNER comes with flags 0x2, expected 0x1"),
        (&[2, 1, 4, 0], "SET_FEATURES comes with 4 bytes, expected 8"),
        // Of which the framework would say nothing.
        (&[8, 1, 8, 2, 3], "queue 2 is to have 3 descriptors, expected a power of two"),
        (&[2, 1, 8, 0, 0x80], "with SET_FEATURES or just before it: failed to handle request"),
    ] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
        stream.write_all(&bytes).unwrap();
        expect_closed(stream);
        assert!(daemon.wait_for_log(told, TIMEOUT).unwrap(), "{told}: {}", daemon.log());
    }
    let mut guest =
        Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
    expect_served(&mut guest);
}

/// In the middle of a message, and of answers that it does not read: neither keeps the daemon from
/// its end, nor from the next frontend.
#[test]
fn a_frontend_that_stalls_keeps_nobody_waiting() {
    let get_features = [1_u32, 1, 0].map(u32::to_ne_bytes).concat();
    let stall = |stream: &mut UnixStream, reads: bool| {
        if reads {
            stream.write_all(&get_features[..7]).unwrap();
        } else {
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            while stream.write_all(&get_features).is_ok() {}
        }
    };
    for reads in [true, false] {
        let mut daemon = start();
        let mut stalls = UnixStream::connect(daemon.socket()).unwrap();
        stall(&mut stalls, reads);
        drop(stalls);
        let mut guest =
            Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
        expect_served(&mut guest);
        drop(guest);
        let mut stalls = UnixStream::connect(daemon.socket()).unwrap();
        stall(&mut stalls, reads);
        let ended = daemon.terminate(TIMEOUT).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", daemon.log());
    }
}

/// Descriptors that no message has are closed, not collected.
#[test]
fn descriptors_that_nobody_asked_for_are_not_kept() {
    let daemon = start();
    let fresh = daemon.fd_count().unwrap();
    for _ in 0..5 {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        let fds: Vec<_> = (0..40).map(|_| pipe_with(PipeFlags::CLOEXEC).unwrap().0).collect();
        let raw: Vec<_> = fds.iter().map(|fd| fd.try_clone().unwrap().into_raw_fd()).collect();
        let message = [1_u32, 1, 0].map(u32::to_ne_bytes).concat();
        vmm_sys_util::sock_ctrl_msg::ScmSocket::send_with_fds(&stream, &[&message[..]], &raw)
            .unwrap();
        for fd in raw {
            // SAFETY: given up above, and owned by nobody else.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        expect_closed(stream);
    }
    wait_until(TIMEOUT, Duration::from_millis(1), || {
        let held = daemon.fd_count().map_err(|error| error.to_string())?;
        if held == fresh { Ok(()) } else { Err(format!("{held} descriptors, {fresh} at first")) }
    })
    .unwrap();
    let said = daemon.wait_for_log("more descriptors than expected", TIMEOUT).unwrap();
    assert!(said, "{}", daemon.log());
}
