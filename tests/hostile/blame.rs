// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a session that fails ends: with an exit status, and without blaming the frontend for what
//! the daemon lacks.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_connected_session_that_fails_has_a_status() {
    for (sent, status) in [(&[][..], 0), (&[0xff; 12], 1)] {
        let (mut frontend, socket) = UnixStream::pair().unwrap();
        let options = DaemonOptions::default();
        let mut daemon =
            DaemonProcess::spawn_on(Path::new(BINARY), socket.into(), &options).unwrap();
        frontend.write_all(sent).unwrap();
        if sent.is_empty() {
            drop(frontend);
        }
        let ended = daemon.wait(SOON).unwrap().expect("it ends by itself");
        assert_eq!(ended.code(), Some(status), "{}", daemon.log());
    }
}

#[test]
fn daemon_out_of_descriptors_never_blames_frontend() {
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    // A SET_OWNER, which has no answer: a session begins with a message.
    stream.write_all(&[3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert!(daemon.wait_for_log("frontend connected", SOON).unwrap());
    // Not one more, whichever number is free. `poll` takes no more entries than this either.
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let limit = Rlimit { current: Some(4), maximum: Some(4) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
    let ram = Ram::new(&RamLayout::flat(16 << 20, Backing::Memfd)).unwrap();
    let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
    assert!(Attachment::over(stream, &ram, options).is_err());
    let said = daemon.wait_for_log("cannot go on serving the frontend", SOON).unwrap();
    assert!(said, "{}", daemon.log());
    assert!(!daemon.log().contains("broke"), "{}", daemon.log());
}
