// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Daemons inside another program: this test.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use vhost_device_balloon::{Config, DaemonError, Embedded, StopHandle};
use vmm_integration::control::ControlSocket;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const SOON: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);
const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;

fn embedded(args: &[&str]) -> Embedded {
    let args = ["vhost-device-balloon"].iter().chain(args);
    Embedded::new(Config::from_args(args).unwrap()).unwrap()
}

fn serving(args: &[&str]) -> (StopHandle, JoinHandle<Result<(), DaemonError>>) {
    let daemon = embedded(args);
    (daemon.stop_handle(), thread::spawn(move || daemon.run()))
}

/// A guest of this daemon, once that listens.
fn attach(socket: &Path) -> Attachment {
    let there = || if socket.exists() { Ok(()) } else { Err("no socket".to_owned()) };
    wait_until(SOON, LOOK_EVERY, there).unwrap();
    let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd)).unwrap();
    let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
    Attachment::connect(socket, &ram, options).unwrap()
}

fn expect_served(guest: &mut Attachment) {
    let range = GpaRange::new(Gpa(8 * MIB), MIB).unwrap();
    guest.ram().write_pattern(range, 1).unwrap();
    guest.submit_and_wait(REPORTING, &[Buffer::writable(Gpa(8 * MIB), 1 << 20)]).unwrap();
    assert!(guest.ram().is_zero(range).unwrap());
}

/// What a daemon of its own process sets for the whole of it: what each signal does, which are blocked
/// in this thread, how many descriptors there may be.
fn of_the_process() -> String {
    let handler = |signal| {
        // SAFETY: an all-zero sigaction is a valid value of that plain C structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only asks.
        unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
        action.sa_sigaction
    };
    let handlers: Vec<_> = (1..libc::SIGRTMAX()).map(handler).collect();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let lines =
        ["SigBlk:", "Umask:"].map(|name| status.lines().find(|line| line.starts_with(name)));
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    format!("{handlers:x?}\n{lines:?}\n{files}")
}

/// Held by each test whose daemons make sockets: the umask of the process is 0 for a moment then.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn embedded_daemons_serve_and_change_no_process() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let before = of_the_process();
    let control = path("c");
    let [a, b] = ["a", "b"].map(|name| {
        let (socket, control) = (path(name), control.to_str().unwrap());
        let mut args = vec!["--socket-path", socket.to_str().unwrap()];
        if name == "a" {
            args.extend(["--control-socket", control]);
        }
        serving(&args)
    });
    let mut guests = [attach(&path("a")), attach(&path("b"))];
    guests.iter_mut().for_each(expect_served);
    assert!(ControlSocket::new(&control, SOON).get("/v1/status").is_ok());
    assert_eq!(of_the_process(), before);

    // A VMM is connected to it, and the other goes on.
    a.0.stop().unwrap();
    a.1.join().unwrap().unwrap();
    assert!(!path("a").exists() && !control.exists());
    let [_, mut guest] = guests;
    expect_served(&mut guest);
    drop(guest);
    expect_served(&mut attach(&path("b")));
    b.0.clone().stop().unwrap();
    b.1.join().unwrap().unwrap();
    assert!(!path("b").exists());
    assert_eq!(of_the_process(), before);
}

#[test]
fn embedded_daemon_stopped_first_ends_at_once() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let daemon = embedded(&["--socket-path", socket.to_str().unwrap()]);
    daemon.stop_handle().stop().unwrap();
    daemon.run().unwrap();
    assert!(!socket.exists());
}

#[test]
fn embedded_daemon_of_one_vmm_ends_with_it() {
    let (vmm, socket) = UnixStream::pair().unwrap();
    let daemon = embedded(&["--fd", &socket.into_raw_fd().to_string()]);
    drop(vmm);
    daemon.run().unwrap();
}
