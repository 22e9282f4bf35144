// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a frontend, or a guest through it, may do to the daemon without a rule of the protocol
//! being checked anywhere: it must neither stall nor spin, and leave alone what is no longer its.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::feature;
use guest_driver::virtio::layout::Descriptor;
use guest_driver::virtio::ring::Buffer;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use vhost::VhostBackend;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);

fn start() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn report(start: u64, len: u32) -> Buffer {
    Buffer::writable(Gpa(start), len)
}

/// The daemon serves the next frontend as if nothing had happened, and costs nothing meanwhile.
fn expect_well(daemon: &DaemonProcess) {
    let ram = ram();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
    guest.submit_and_wait(REPORTING, &[report(8 * MIB, 1 << 20)]).unwrap();
    assert!(ram.is_zero(range(8 * MIB, MIB)).unwrap());
}

/// How often the daemon's threads were switched to, while it should have nothing to do.
fn wake_ups(pid: u32) -> u64 {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        sum += schedstat.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap();
    }
    sum
}

fn expect_asleep(daemon: &DaemonProcess) {
    expect_woken(daemon.pid(), 0);
}

/// The process is woken so often in half a second at most, once it has come to rest.
fn expect_woken(pid: u32, most: u64) {
    wait_until(TIMEOUT, LOOK_EVERY, || {
        let before = wake_ups(pid);
        std::thread::sleep(Duration::from_millis(500));
        let woken = wake_ups(pid) - before;
        if woken <= most { Ok(()) } else { Err(format!("woken {woken} times in half a second")) }
    })
    .unwrap();
}

/// Once the frontend has its answer to GET_VRING_BASE, the queue's rings are memory like any other.
#[test]
fn nothing_is_written_to_the_rings_of_a_stopped_queue() {
    let daemon = start();
    let size = 2 << 30;
    let ram = Ram::new(&RamLayout::flat(size, Backing::Memfd)).unwrap();
    // Without EVENT_IDX each look at a queue writes to its used ring.
    let features = AttachOptions::KNOWN_FEATURES & !feature::EVENT_IDX;
    let queues = Some(vec![0, 1, 2, 3]);
    let options = AttachOptions { features, queues, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    ram.populate(range(64 * MIB, size - 64 * MIB)).unwrap();
    let half = u32::try_from((size - 64 * MIB) / 2).unwrap();

    // A long chain keeps the worker busy. Kicks of two queues come in meanwhile, and the second is
    // stopped while the first, again long, is served.
    guest.ring(3).unwrap().add_chain(&[report(64 * MIB, half)]).unwrap();
    guest.publish(3).unwrap();
    let full = ram.resident_bytes().unwrap();
    wait_until(TIMEOUT, LOOK_EVERY, || {
        let resident = ram.resident_bytes().map_err(|error| error.to_string())?;
        if resident < full { Ok(()) } else { Err("the worker has not begun".to_owned()) }
    })
    .unwrap();
    let second = report(64 * MIB + u64::from(half), half);
    guest.ring(2).unwrap().add_chain(&[second]).unwrap();
    guest.publish(2).unwrap();
    guest.kick(0).unwrap();
    assert!(guest.wait_used(3, TIMEOUT).unwrap().is_some());
    guest.stop_queue(0).unwrap();
    let used = guest.ring(0).unwrap().layout().used();
    let page = range(used.0 & !4095, 4096);
    ram.write_pattern(page, 7).unwrap();
    assert!(guest.wait_used(2, TIMEOUT).unwrap().is_some());
    expect_asleep(&daemon);
    ram.verify_pattern(page, 7).unwrap();
}

#[test]
fn a_kick_may_be_replaced_while_the_queue_runs() {
    let daemon = start();
    let mut guest =
        Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
    let new = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    guest.control("kick", |frontend| frontend.set_vring_kick(2, &new)).unwrap();
    guest.ring(REPORTING).unwrap().add_chain(&[report(8 * MIB, 4096)]).unwrap();
    guest.ring(REPORTING).unwrap().publish().unwrap();
    new.write(1).unwrap();
    assert!(guest.wait_used(REPORTING, TIMEOUT).unwrap().is_some());
    // The old one is watched still: it must not keep the worker awake.
    guest.kick(REPORTING).unwrap();
    expect_asleep(&daemon);
}

#[test]
fn what_is_no_eventfd_is_not_taken_for_a_kick() {
    let (pipe, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    drop(writer);
    let (socket, other) = UnixStream::pair().unwrap();
    drop(other);
    let zero = File::open("/dev/zero").unwrap();
    for fd in [OwnedFd::from(socket), pipe, zero.into(), tempfile::tempfile().unwrap().into()] {
        // Its log holds the refusal of this descriptor alone.
        let daemon = start();
        let mut guest =
            Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
        guest.stop_queue(REPORTING).unwrap();
        // SAFETY: the descriptor is owned, and given to its new owner.
        let kick = unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) };
        let refused = guest.control("kick", |frontend| frontend.set_vring_kick(2, &kick));
        refused.unwrap_err();
        let says = "expected an eventfd";
        assert!(daemon.wait_for_log(says, TIMEOUT).unwrap(), "{}", daemon.log());
        expect_well(&daemon);
    }
}

/// Reading it for one queue takes it from the others; a read that waits would never return.
#[test]
fn queues_may_share_a_kick_that_blocks() {
    let daemon = start();
    let mut guest =
        Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
    let shared = EventFd::new(EFD_CLOEXEC).unwrap();
    // SAFETY: the copy is owned, and given to its new owner.
    let flags = unsafe { OwnedFd::from_raw_fd(shared.try_clone().unwrap().into_raw_fd()) };
    for queue in [0, 1, usize::from(REPORTING)] {
        guest.control("kick", |frontend| frontend.set_vring_kick(queue, &shared)).unwrap();
    }
    rustix::fs::fcntl_setfl(&flags, OFlags::empty()).unwrap();
    for _ in 0..200 {
        guest.ring(REPORTING).unwrap().add_chain(&[report(8 * MIB, 4096)]).unwrap();
        guest.ring(REPORTING).unwrap().publish().unwrap();
        // Another queue may take it, so one kick may not be enough.
        wait_until(TIMEOUT, LOOK_EVERY, || {
            shared.write(1).map_err(|error| error.to_string())?;
            let used = guest.wait_used(REPORTING, LOOK_EVERY).map_err(|error| error.to_string())?;
            used.ok_or_else(|| "the chain is not returned".to_owned())
        })
        .unwrap();
    }
    guest.stop_queue(0).unwrap();
    drop(guest);
    expect_well(&daemon);
}

/// Guest memory belongs to others, too: they may go on feeding a queue after the hang-up.
#[test]
fn a_session_ends_though_its_ring_never_runs_empty() {
    let mut daemon = start();
    let ram = ram();
    let options = AttachOptions { queue_size: 32768, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    let layout = *guest.ring(REPORTING).unwrap().layout();
    // Descriptor 0 is a chain without an end, and every entry of the available ring names it.
    let endless = Descriptor::writable(Gpa(1 << 50), 64).chained_to(0);
    guest.ring(REPORTING).unwrap().write_descriptor(0, endless).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when something here fails, or nobody would tell.
        let _stop = Stop(&stop);
        let (feeding, stopped) = (ram.clone(), &stop);
        scope.spawn(move || {
            let (avail, used) = (Gpa(layout.avail().0 + 2), Gpa(layout.used().0 + 2));
            while !stopped.load(Ordering::Relaxed) {
                let at = feeding.load_u16(used, Ordering::Relaxed).unwrap();
                feeding.store_u16(avail, at.wrapping_add(20000), Ordering::Relaxed).unwrap();
            }
        });
        guest.kick(REPORTING).unwrap();
        // The control thread gets its turn, and so does the end.
        guest.stop_queue(0).unwrap();
        drop(guest);
        daemon.session_summary(TIMEOUT).unwrap();
        expect_well(&daemon);
        let ended = daemon.terminate(TIMEOUT).unwrap();
        assert_eq!(ended.status.code(), Some(0));
    });
}

/// Ends who feeds a ring at the end of a scope.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn broken_chain_is_returned_and_none_of_it_discarded() {
    let daemon = start();
    let ram = ram();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
    let ring = guest.ring(REPORTING).unwrap();
    let head = ring.claim(1).unwrap()[0];
    let past_the_table = ring.layout().size();
    let whole = Descriptor::writable(Gpa(8 * MIB), 1 << 20);
    ring.write_descriptor(head, whole.chained_to(past_the_table)).unwrap();
    ring.offer(head).unwrap();
    guest.publish(REPORTING).unwrap();
    assert_eq!(guest.wait_used(REPORTING, TIMEOUT).unwrap().unwrap().len, 0);
    ram.verify_pattern(range(8 * MIB, MIB), 1).unwrap();
    drop(guest);
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!(summary.skipped_bytes["broken_chain"], MIB);
}

/// The daemon, started by a shell that sets it up badly.
/// `None` where it cannot even start.
fn start_badly(socket: &Path, set_up: &str, stderr: Stdio) -> Option<Child> {
    let script = format!("{set_up} exec {BINARY} --socket-path {}", socket.display());
    let mut child = Command::new("sh").args(["-c", &script]).stderr(stderr).spawn().unwrap();
    let listens = wait_until(TIMEOUT, LOOK_EVERY, || {
        let ended = child.try_wait().map_err(|error| error.to_string())?.is_some();
        match UnixStream::connect(socket) {
            Err(error) if !ended => Err(error.to_string()),
            connected => Ok(connected.is_ok()),
        }
    });
    listens.unwrap().then_some(child)
}

fn terminate(mut child: Child) {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = wait_until(TIMEOUT, LOOK_EVERY, || {
        child.try_wait().map_err(|error| error.to_string())?.ok_or("still there".to_owned())
    });
    let _ = child.kill();
    assert_eq!(status.unwrap().code(), Some(0));
}

#[test]
fn out_of_descriptors_it_waits_instead_of_spinning() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    // As few as it can start with.
    let start = |limit| {
        let stderr = File::create(&log).unwrap();
        let mut child =
            start_badly(&dir.path().join("s"), &format!("ulimit -n {limit};"), stderr.into())?;
        // It listens before it has all that it needs.
        let starts = wait_until(TIMEOUT, LOOK_EVERY, || {
            let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
            let ended = child.try_wait().map_err(|error| error.to_string())?.is_some();
            if text.contains("listening on") || ended { Ok(!ended) } else { Err(text) }
        });
        starts.unwrap().then_some(child)
    };
    let child = (12..64).find_map(start).unwrap();
    wait_until(TIMEOUT, LOOK_EVERY, || {
        let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
        if text.contains("cannot serve a frontend") { Ok(()) } else { Err(text) }
    })
    .unwrap();
    // It tries again every second.
    expect_woken(child.id(), 2);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().count() < 10, "{text}");
    terminate(child);
}

/// Whoever started it has stopped reading its log.
#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_unread, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    let mut full = File::from(writer);
    while full.write(&[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&full, OFlags::empty()).unwrap();
    let socket = dir.path().join("s");
    let child = start_badly(&socket, "", full.into()).unwrap();
    let ram = ram();
    let mut guest = Attachment::connect(&socket, &ram, AttachOptions::default()).unwrap();
    guest.submit_and_wait(REPORTING, &[report(1 << 50, 4096)]).unwrap();
    drop(guest);
    terminate(child);
    assert!(!socket.exists());

    let status = Command::new("sh")
        .args(["-c", &format!("exec {BINARY} --socket-path /none/s 2>/dev/full")])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}
