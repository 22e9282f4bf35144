// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that is out of memory: the kernel kills the VMM or the daemon while a report is in flight,
//! or leaves the daemon without memory.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::cgroup::MemoryLimit;
use vmm_integration::measure::host::wait_until;
use vmm_integration::measure::inode_lock::InodeLock;

const MIB: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const KILLED: i32 = 9;
/// Daemons that may find a page that is left in a full group.
const ATTEMPTS: usize = 8;
/// For the process that is the VMM: the socket of the daemon, and its process ID.
const SOCKET: &str = "HOST_OOM_SOCKET";
const DAEMON: &str = "HOST_OOM_DAEMON";

fn start() -> DaemonProcess {
    start_with(&[])
}

fn start_with(args: &[&str]) -> DaemonProcess {
    let args = args.iter().map(Into::into).collect();
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions { args, ..DaemonOptions::default() })
        .unwrap()
}

fn ram() -> Ram {
    Ram::new(&RamLayout::flat(128 * MIB, Backing::Memfd)).unwrap()
}

fn attach(socket: &Path, ram: &Ram) -> Attachment {
    let options = AttachOptions { timeout: TIMEOUT, ..AttachOptions::default() };
    Attachment::connect(socket, ram, options).unwrap()
}

/// What is reported, of the largest size that goes in one call whatever the backing.
fn range() -> GpaRange {
    GpaRange::new(Gpa(8 * MIB), 2 * MIB).unwrap()
}

fn publish_report(guest: &mut Attachment) {
    let queue = guest.reporting_queue().unwrap();
    let buffer = Buffer::writable(range().start(), 2 << 20);
    guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    guest.publish(queue).unwrap();
}

/// Reports [`range`], and returns when the daemon is in the discarding call, which the lock holds up.
fn report_behind(guest: &mut Attachment, daemon: u32) -> InodeLock {
    guest.ram().write_pattern(range(), 1).unwrap();
    // A byte that nothing here looks at.
    let lock = InodeLock::hold(guest.ram().file(0), 16 * MIB).unwrap();
    publish_report(guest);
    wait_until(TIMEOUT, LOOK_EVERY, || {
        let call = format!("{} ", libc::SYS_fallocate);
        let tasks = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
        let calls = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("syscall")));
        let discards = calls.into_iter().any(|now| now.is_ok_and(|now| now.starts_with(&call)));
        if discards { Ok(()) } else { Err("no discarding call".to_owned()) }
    })
    .unwrap();
    lock
}

/// Not a test: the VMM that [`vmm_killed_by_oom_ends_its_session_only`] starts.
#[test]
#[ignore = "needs root and a memory limit: cargo xtask test"]
fn vmm_of_another_test_reports_until_it_is_killed() {
    let (Some(socket), Some(daemon)) = (std::env::var_os(SOCKET), std::env::var_os(DAEMON)) else {
        return;
    };
    let mut guest = attach(socket.as_ref(), &ram());
    let daemon = daemon.to_str().unwrap().parse().unwrap();
    let _lock = report_behind(&mut guest, daemon);
    // The guest uses more memory than its group may.
    guest.ram().populate(GpaRange::new(Gpa(32 * MIB), 96 * MIB).unwrap()).unwrap();
}

#[test]
#[ignore = "needs root and a memory limit: cargo xtask test"]
fn vmm_killed_by_oom_ends_its_session_only() {
    let limit = MemoryLimit::new(64 * MIB).unwrap();
    let mut daemon = start();
    let mut vmm: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored"])
        .arg("host_oom::vmm_of_another_test_reports_until_it_is_killed")
        .env(SOCKET, daemon.socket())
        .env(DAEMON, daemon.pid().to_string())
        .spawn()
        .unwrap();
    limit.add(vmm.id()).unwrap();
    let status = vmm.wait().unwrap();
    assert_eq!(status.signal(), Some(KILLED), "{status}");
    assert_eq!(limit.oom_kills().unwrap(), 1);
    // The call was in progress, and ends when the dead VMM's lock is free.
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!((summary.chains, summary.discard_calls), (1, 1), "{}", daemon.log());
    assert_eq!(summary.bytes_discarded, range().len());

    let mut next = attach(&daemon.socket(), &ram());
    assert!(next.given_back(range()).unwrap());
    drop(next);
    daemon.session_summary(TIMEOUT).unwrap();
    let ended = daemon.terminate(TIMEOUT).unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let log = daemon.log();
    assert_eq!(log.matches("frontend connected").count(), 2, "{log}");
}

/// A report needs no memory but the stack of the worker, which the first one touches: further reports
/// go on in a group that has none left.
#[test]
#[ignore = "needs root and a memory limit: cargo xtask test"]
fn daemon_at_its_memory_limit_discards() {
    let limit = MemoryLimit::new(4 * MIB).unwrap();
    let filled = limit.fill().unwrap();
    let kills = limit.oom_kills().unwrap();
    let mut daemon = start();
    let mut guest = attach(&daemon.socket(), &ram());
    assert!(guest.given_back(range()).unwrap());
    limit.add(daemon.pid()).unwrap();
    for _ in 0..256 {
        assert!(guest.given_back(range()).unwrap());
    }
    assert_eq!(limit.oom_kills().unwrap(), kills, "{}", daemon.log());
    // To end a session takes memory.
    drop(filled);
    drop(guest);
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!(summary.bytes_discarded, 257 * range().len());
    let ended = daemon.terminate(TIMEOUT).unwrap();
    assert_eq!(ended.status.code(), Some(0));
}

/// The first report takes a page of stack; in the sandbox the worker has touched it before. No daemon hangs for
/// want of it: the kernel kills the daemon.
///
/// A daemon that finds a page serves its report. Then the group is filled again, and the next daemon is tried: a CPU
/// charges pages to a group ahead of need (`memcg_stock`), and may return them after the group was full: a hypothesis.
#[test]
#[ignore = "needs root and a memory limit: cargo xtask test"]
fn daemon_without_memory_is_killed_not_stuck() {
    let limit = MemoryLimit::new(4 * MIB).unwrap();
    let mut filled = Vec::new();
    for _ in 0..ATTEMPTS {
        filled.push(limit.fill().unwrap());
        let kills = limit.oom_kills().unwrap();
        let mut daemon = start_with(&["--sandbox=none"]);
        let mut guest = attach(&daemon.socket(), &ram());
        limit.add(daemon.pid()).unwrap();
        guest.ram().write_pattern(range(), 1).unwrap();
        publish_report(&mut guest);
        let queue = guest.reporting_queue().unwrap();
        let ended = wait_until(TIMEOUT, LOOK_EVERY, || {
            if let Some(status) = daemon.wait(Duration::ZERO).unwrap() {
                return Ok(Some(status));
            }
            let served = guest.ring(queue).unwrap().pop_used().unwrap().is_some();
            let stuck = || "the daemon has neither ended nor returned the report".to_owned();
            if served { Ok(None) } else { Err(stuck()) }
        });
        if let Some(status) = ended.unwrap() {
            assert_eq!(status.signal(), Some(KILLED), "{status}");
            assert_eq!(limit.oom_kills().unwrap(), kills + 1);
            next_daemon_returns_the_report(guest);
            return;
        }
        assert_eq!(limit.oom_kills().unwrap(), kills);
    }
    panic!("{ATTEMPTS} daemons found memory in a full group");
}

#[test]
#[ignore = "needs root and a memory limit: cargo xtask test"]
fn daemon_killed_by_oom_leaves_its_report_to_the_next() {
    let limit = MemoryLimit::new(64 * MIB).unwrap();
    let mut daemon = start();
    let mut guest = attach(&daemon.socket(), &ram());
    limit.add(daemon.pid()).unwrap();
    MemoryLimit::kill_first(daemon.pid()).unwrap();
    let lock = report_behind(&mut guest, daemon.pid());
    let _filled = limit.fill().unwrap();
    // A process in such a call ends after it.
    drop(lock);
    let status = daemon.wait(TIMEOUT).unwrap().expect("it ends");
    assert_eq!(status.signal(), Some(KILLED), "{status}");
    next_daemon_returns_the_report(guest);
}

/// The guest does not use the pages of its report until the report is returned, which happens once.
fn next_daemon_returns_the_report(mut guest: Attachment) {
    let queue = guest.reporting_queue().unwrap();
    assert!(guest.ring(queue).unwrap().pop_used().unwrap().is_none());
    let next = start();
    let mut guest = guest.reconnect(&next.socket()).unwrap();
    assert!(guest.wait_used(queue, TIMEOUT).unwrap().is_some());
    assert!(guest.ram().is_zero(range()).unwrap());
    guest.ram().write_pattern(range(), 2).unwrap();
    let elsewhere = GpaRange::new(Gpa(12 * MIB), MIB).unwrap();
    assert!(guest.given_back(elsewhere).unwrap());
    assert!(guest.ring(queue).unwrap().pop_used().unwrap().is_none());
    guest.ram().verify_pattern(range(), 2).unwrap();
    drop(guest);
    assert_eq!(next.session_summary(TIMEOUT).unwrap().chains, 2, "{}", next.log());
}
