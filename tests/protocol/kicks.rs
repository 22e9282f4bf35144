// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kick that is never read down, was replaced, or is no eventfd costs the daemon nothing.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use guest_driver::ram::Gpa;
use guest_driver::virtio::ring::Buffer;
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vhost::VhostBackend;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::{cpu_time, wait_until};
use vmm_sys_util::eventfd::EventFd;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const REPORTING: u16 = 2;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);

fn start() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

fn connect(daemon: &DaemonProcess) -> Attachment {
    let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd)).unwrap();
    let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
    Attachment::connect(&daemon.socket(), &ram, options).unwrap()
}

fn set_kick(guest: &mut Attachment, kick: &OwnedFd) {
    let copy = kick.try_clone().unwrap();
    // SAFETY: the copy is owned, and given to its new owner.
    let copy = unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) };
    let queue = usize::from(REPORTING);
    guest.control("set vring kick", |frontend| frontend.set_vring_kick(queue, &copy)).unwrap();
}

/// A semaphore that has to be read so often that nothing could.
fn semaphore() -> OwnedFd {
    let kick = eventfd(0, EventfdFlags::SEMAPHORE | EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&kick, &(1_u64 << 60).to_ne_bytes()).unwrap();
    kick
}

fn serve_by(guest: &mut Attachment, kick: &OwnedFd) {
    guest.ring(REPORTING).unwrap().add_chain(&[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
    guest.ring(REPORTING).unwrap().publish().unwrap();
    rustix::io::write(kick, &1_u64.to_ne_bytes()).unwrap();
    assert!(guest.wait_used(REPORTING, SOON).unwrap().is_some());
}

/// Once at rest the daemon takes no CPU time. A worker that spins takes a tenth of the window at
/// least, however many others want the processor.
fn expect_idle(daemon: &DaemonProcess) {
    wait_until(SOON, LOOK_EVERY, || {
        let before = cpu_time(daemon.pid()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        // A thread that has ended takes its time with it.
        let spent = cpu_time(daemon.pid()).unwrap().checked_sub(before).ok_or("a thread ended")?;
        if spent < Duration::from_millis(2) { Ok(()) } else { Err(format!("{spent:?} of CPU")) }
    })
    .unwrap();
}

#[test]
fn semaphore_as_kick_does_not_spin_the_worker() {
    let daemon = start();
    let mut guest = connect(&daemon);
    let kick = semaphore();
    set_kick(&mut guest, &kick);
    for _ in 0..100 {
        serve_by(&mut guest, &kick);
    }
    expect_idle(&daemon);
}

#[test]
fn replaced_kicks_are_not_watched() {
    let daemon = start();
    let mut guest = connect(&daemon);
    let kicks: Vec<_> = (0..40)
        .map(|_| {
            let kick = semaphore();
            set_kick(&mut guest, &kick);
            kick
        })
        .collect();
    let descriptors = daemon.fd_count().unwrap();
    for kick in &kicks {
        rustix::io::write(kick, &1_u64.to_ne_bytes()).unwrap();
    }
    serve_by(&mut guest, &kicks[39]);
    expect_idle(&daemon);
    // A queue that is stopped and started again is watched again.
    let base = guest.stop_queue(REPORTING).unwrap();
    guest.start_queue(REPORTING, base).unwrap();
    set_kick(&mut guest, &kicks[0]);
    serve_by(&mut guest, &kicks[0]);
    set_kick(&mut guest, &kicks[1]);
    serve_by(&mut guest, &kicks[1]);
    expect_idle(&daemon);
    assert!(daemon.fd_count().unwrap() <= descriptors, "replaced kicks are kept");
}

/// A daemon that sees nothing at /proc.
fn start_without_proc() -> DaemonProcess {
    let hide = "mount -t tmpfs none /proc";
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("daemon");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '{hide} && exec {BINARY} \"$@\"' daemon \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    DaemonProcess::spawn(&script, &DaemonOptions::default()).unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn without_proc_eventfds_are_known_and_others_refused() {
    let daemon = start_without_proc();
    let mut guest = connect(&daemon);
    let kick = semaphore();
    set_kick(&mut guest, &kick);
    serve_by(&mut guest, &kick);
    expect_idle(&daemon);
    // A timer is an anonymous inode like an eventfd, and goes off a thousand times a second.
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
    let often = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let set = Itimerspec { it_interval: often, it_value: often };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &set).unwrap();
    // SAFETY: the descriptor is owned, and given to its new owner.
    let timer = unsafe { EventFd::from_raw_fd(timer.into_raw_fd()) };
    let queue = usize::from(REPORTING);
    // It may be refused with the session, or left unused.
    let _ = guest.control("set vring kick", |frontend| frontend.set_vring_kick(queue, &timer));
    expect_idle(&daemon);
    drop(guest);
    let mut next = connect(&daemon);
    next.submit_and_wait(REPORTING, &[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
}
