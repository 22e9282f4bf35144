// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines that a frontend or a control client can repeat are limited, and counted where left out.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use guest_driver::ram::Gpa;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment, DirtyLog};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// More than any place in the source may log in ten seconds.
const MANY: usize = 300;

struct Log(String);

impl Log {
    fn of(mut daemon: DaemonProcess) -> Self {
        daemon.terminate(SOON).unwrap();
        Self(daemon.log())
    }

    fn lines(&self, text: &str) -> usize {
        self.0.lines().filter(|line| line.contains(text)).count()
    }

    /// Lines left out, of all places in this file.
    fn left_out(&self, file: &str) -> usize {
        let count = |line: &str| {
            let (count, place) = line.split_once(" lines of ")?;
            place.contains(file).then(|| count.parse::<usize>().unwrap())
        };
        self.0.lines().filter_map(count).sum()
    }
}

fn start() -> DaemonProcess {
    DaemonProcess::spawn_controlled(Path::new(BINARY), [""; 0]).unwrap()
}

#[test]
fn a_control_client_that_repeats_itself_is_cut() {
    let daemon = start();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    for _ in 0..MANY {
        control.done("POST", "/v1/pause", "").unwrap();
    }
    let log = Log::of(daemon);
    let said = log.lines("paused");
    assert_eq!(said + log.left_out("api/pause.rs"), MANY, "{}", log.0);
    assert!(log.left_out("api/pause.rs") > 0, "{}", log.0);
}

#[test]
fn a_frontend_that_toggles_dirty_logging_is_cut() {
    let daemon = start();
    let ram = Ram::new(&RamLayout::flat(16 * MIB, Backing::Memfd)).unwrap();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    guest.set_log(&DirtyLog::new(Gpa(16 * MIB)).unwrap()).unwrap();
    for at in 0..MANY {
        guest.set_logging(at % 2 == 0).unwrap();
    }
    drop(guest);
    let log = Log::of(daemon);
    let said = log.lines("dirty logging");
    assert_eq!(said + log.left_out("backend.rs"), MANY, "{}", log.0);
    assert!(log.left_out("backend.rs") > 0, "{}", log.0);
}

#[test]
fn a_frontend_that_connects_in_a_loop_is_cut() {
    let daemon = start();
    for _ in 0..MANY {
        // Served one after the other, each until it is seen to have gone.
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        // A GET_FEATURES: a session begins with a message.
        stream.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let log = Log::of(daemon);
    assert!(log.lines("frontend connected") < MANY, "{}", log.0);
    assert!(log.lines("session: ") < MANY, "{}", log.0);
    assert!(log.left_out("session.rs") > 0, "{}", log.0);
}
