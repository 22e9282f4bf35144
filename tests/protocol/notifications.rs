// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver is notified of every chain that was returned, whatever ends the daemon's round, and
//! through every kind of call descriptor.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use vhost::VhostBackend;
use vhost::vhost_user::message::FrontendReq;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const REPORTING: u16 = 2;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);

fn start() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

fn options() -> AttachOptions {
    AttachOptions { timeout: SOON, ..AttachOptions::default() }
}

fn small_ram() -> Ram {
    Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd)).unwrap()
}

fn is_readable(fd: impl AsFd, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(timeout).unwrap())).unwrap() > 0
}

/// A report of a page that is not memory: it comes back at once.
fn offer_nothing(guest: &mut Attachment) {
    guest.ring(REPORTING).unwrap().add_chain(&[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
    guest.publish(REPORTING).unwrap();
}

/// Waits for the next chain without being notified of it.
fn watch_for_used(guest: &mut Attachment) {
    wait_until(SOON, LOOK_EVERY, || {
        let used = guest.ring(REPORTING).unwrap().pop_used().unwrap();
        used.ok_or_else(|| "no chain came back".to_owned())
    })
    .unwrap();
}

/// A guest whose frontend has taken the reporting queue's call descriptor back.
fn guest_without_call(daemon: &DaemonProcess, ram: &Ram) -> Attachment {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let guest = Attachment::over(stream.try_clone().unwrap(), ram, options()).unwrap();
    // Bit 8 says that there is no descriptor (VHOST_USER_VRING_NOFD_MASK).
    let payload = u64::from(REPORTING) | 1 << 8;
    let header = [FrontendReq::SET_VRING_CALL as u32, 1, 8].map(u32::to_ne_bytes).concat();
    stream.write_all(&[header, payload.to_ne_bytes().to_vec()].concat()).unwrap();
    // It has no answer, but the next message has: the descriptor is gone when that comes.
    let mut guest = guest;
    guest.control("get features", |frontend| frontend.get_features()).unwrap();
    guest
}

fn set_call(guest: &mut Attachment, call: OwnedFd) {
    // SAFETY: the descriptor is owned, and given to its new owner.
    let call = unsafe { EventFd::from_raw_fd(call.into_raw_fd()) };
    let queue = usize::from(REPORTING);
    guest.control("set vring call", |frontend| frontend.set_vring_call(queue, &call)).unwrap();
}

/// Ends the daemon's round in the middle of a chain: that chain is returned, and its driver hears of
/// it.
fn end_in_a_chain(end: impl FnOnce(&mut DaemonProcess, Attachment)) {
    let mut daemon = start();
    let size = 512 * MIB;
    let ram = Ram::new(&RamLayout::flat(size, Backing::Memfd)).unwrap();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options()).unwrap();
    ram.populate(GpaRange::new(Gpa(32 * MIB), size - 32 * MIB).unwrap()).unwrap();
    let full = ram.resident_bytes().unwrap();
    let chain = Buffer::writable(Gpa(32 * MIB), u32::try_from(size - 32 * MIB).unwrap());
    guest.ring(REPORTING).unwrap().add_chain(&[chain]).unwrap();
    guest.publish(REPORTING).unwrap();
    let (mut ring, line) = guest.take_queue(REPORTING).unwrap();
    wait_until(SOON, LOOK_EVERY, || {
        let resident = ram.resident_bytes().map_err(|error| error.to_string())?;
        if resident < full { Ok(()) } else { Err("the worker has not begun".to_owned()) }
    })
    .unwrap();
    end(&mut daemon, guest);
    assert!(ring.pop_used().unwrap().is_some(), "the chain was not returned\n{}", daemon.log());
    assert!(line.is_called(), "used idx 1, call count 0");
}

#[test]
fn chain_under_way_at_sigterm_is_notified() {
    end_in_a_chain(|daemon, guest| {
        daemon.terminate(SOON).unwrap();
        drop(guest);
    });
}

#[test]
fn chain_under_way_at_hang_up_is_notified() {
    end_in_a_chain(|daemon, guest| {
        drop(guest);
        daemon.session_summary(SOON).unwrap();
    });
}

#[test]
fn call_that_comes_late_is_told_of_earlier_chains() {
    let daemon = start();
    let mut guest = guest_without_call(&daemon, &small_ram());
    offer_nothing(&mut guest);
    watch_for_used(&mut guest);
    for _ in 0..2 {
        // The second time it was told, but nothing says that the old call was listened to.
        let call = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        // SAFETY: the copy is owned, and given to its new owner.
        let copy = unsafe { OwnedFd::from_raw_fd(call.try_clone().unwrap().into_raw_fd()) };
        set_call(&mut guest, copy.try_clone().unwrap());
        assert!(is_readable(&copy, SOON), "the new call was not signalled");
    }
}

/// The daemon is killed after it has returned a chain, and before it has notified the driver.
#[test]
fn next_daemon_on_a_used_ring_notifies_once() {
    let mut first = start();
    let ram = small_ram();
    let mut guest = guest_without_call(&first, &ram);
    offer_nothing(&mut guest);
    watch_for_used(&mut guest);
    assert!(!guest.wait_call(REPORTING, Duration::ZERO).unwrap());
    first.kill().unwrap();
    let second = start();
    let mut guest = guest.reconnect(&second.socket()).unwrap();
    assert!(guest.wait_call(REPORTING, SOON).unwrap(), "the next daemon does not notify");
}

#[test]
fn fresh_queue_is_not_notified() {
    let daemon = start();
    let mut guest = Attachment::connect(&daemon.socket(), &small_ram(), options()).unwrap();
    // The reporting queue has served a chain meanwhile, so the others have been looked at.
    offer_nothing(&mut guest);
    assert!(guest.wait_used(REPORTING, SOON).unwrap().is_some());
    assert!(!guest.wait_call(0, Duration::ZERO).unwrap());
}

/// User-mode Linux calls the end of a socket pair a pipe. None is made non-blocking: the file is
/// the frontend's, too.
#[test]
fn sockets_pipes_and_blocking_eventfds_are_signalled() {
    let daemon = start();
    let mut guest = Attachment::connect(&daemon.socket(), &small_ram(), options()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    for (ours, theirs) in [
        (OwnedFd::from(ours), OwnedFd::from(theirs)),
        (read, write),
        (event.try_clone().unwrap(), event),
    ] {
        set_call(&mut guest, theirs.try_clone().unwrap());
        offer_nothing(&mut guest);
        watch_for_used(&mut guest);
        assert!(is_readable(&ours, SOON));
        assert!(!fcntl_getfl(&theirs).unwrap().contains(OFlags::NONBLOCK));
    }
}

/// The worker must neither wait for room in it nor be lost to the next frontend.
#[test]
fn call_that_is_full_and_blocks_keeps_nothing_waiting() {
    let mut daemon = start();
    let mut guest = Attachment::connect(&daemon.socket(), &small_ram(), options()).unwrap();
    let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    set_call(&mut guest, full.try_clone().unwrap());
    for _ in 0..3 {
        offer_nothing(&mut guest);
        watch_for_used(&mut guest);
    }
    drop(guest);
    daemon.session_summary(SOON).unwrap();
    let mut next = Attachment::connect(&daemon.socket(), &small_ram(), options()).unwrap();
    next.submit_and_wait(REPORTING, &[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
    drop(next);
    assert_eq!(daemon.terminate(SOON).unwrap().status.code(), Some(0));
}
