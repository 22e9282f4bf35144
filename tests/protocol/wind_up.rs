// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A session that ends takes its time, and nothing else waits for it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest_driver::ram::{Gpa, GpaRange};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const SOON: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

fn spawn() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn_controlled(binary, [] as [&str; 0]).unwrap()
}

/// Bytes of the guest whose memory is unmapped: `WIND_UP_GIB`, or 3 GiB.
fn guest_bytes() -> u64 {
    std::env::var("WIND_UP_GIB").map_or(3, |gib| gib.parse().unwrap()) * GIB
}

/// A guest that uses all its memory. When it is dropped the daemon is the last that holds it, as it
/// is when a VMM is killed: the daemon is the one to free it.
fn full_guest(daemon: &DaemonProcess, bytes: u64) -> Attachment {
    let ram = Ram::new(&RamLayout::flat(bytes, Backing::Memfd)).unwrap();
    let guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    ram.populate(GpaRange::new(Gpa(0), bytes).unwrap()).unwrap();
    guest
}

#[test]
#[ignore = "needs 5 GiB of memory: cargo xtask test"]
fn status_is_answered_while_a_large_guest_ends() {
    let bytes = guest_bytes();
    let daemon = spawn();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    let guest = full_guest(&daemon, bytes);
    let over = AtomicBool::new(false);
    let (wind_up, slowest, asked) = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut slowest, mut asked) = (Duration::ZERO, 0);
            while !over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                control.get("/v1/status").unwrap();
                slowest = slowest.max(begin.elapsed());
                asked += 1;
                // A rate, and nothing to wait for.
                thread::sleep(Duration::from_millis(10));
            }
            (slowest, asked)
        });
        let begin = Instant::now();
        drop(guest);
        let ended = daemon.session_summary(SOON);
        let wind_up = begin.elapsed();
        over.store(true, Ordering::Relaxed);
        ended.unwrap();
        let (slowest, asked) = asking.join().unwrap();
        (wind_up, slowest, asked)
    });
    let gib = bytes / GIB;
    println!("{gib} GiB wound up in {wind_up:?}; slowest of {asked} answers: {slowest:?}");
    // As slow as the whole of it, if the main thread unmaps or waits.
    assert!(slowest < wind_up / 2, "{slowest:?} of {wind_up:?}");
}

#[test]
#[ignore = "needs 5 GiB of memory: cargo xtask test"]
fn vmm_is_served_after_a_large_guest_has_ended() {
    let bytes = guest_bytes();
    let daemon = spawn();
    drop(full_guest(&daemon, bytes / 2));
    // While the memory of the other is unmapped.
    let ram = Ram::new(&RamLayout::flat(64 << 20, Backing::Memfd)).unwrap();
    let next = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    drop(next);
    wait_until(SOON, Duration::from_millis(1), || {
        let ended = daemon.log().matches("session: chains=").count();
        if ended == 2 { Ok(()) } else { Err(format!("{ended} sessions")) }
    })
    .unwrap();
}

#[test]
#[ignore = "needs 5 GiB of memory: cargo xtask test"]
fn sigterm_ends_it_while_a_large_guest_ends() {
    let bytes = guest_bytes();
    let mut daemon = spawn();
    drop(full_guest(&daemon, bytes));
    let ended = daemon.terminate(SOON).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists() && !daemon.control_socket().exists());
}

/// A thread of another process that is stopped for as long as this lives, as one that is stuck in a
/// system call is.
struct Stopped(libc::pid_t);

impl Stopped {
    fn new(thread: libc::pid_t) -> Self {
        let call = |request| {
            let null = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: no memory of this process is given to the kernel.
            unsafe { libc::ptrace(request, thread, null, null) }
        };
        if call(libc::PTRACE_SEIZE) != 0 || call(libc::PTRACE_INTERRUPT) != 0 {
            panic!("ptrace: {}", std::io::Error::last_os_error());
        }
        let mut status = 0;
        // SAFETY: the status is writable.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        assert_eq!(waited, thread);
        Self(thread)
    }

    /// Waits until it has died. A process does not end before its tracer has seen that.
    fn wait_until_dead(&self) {
        wait_until(SOON, Duration::from_millis(10), || {
            let mut status = 0;
            let how = libc::__WALL | libc::WNOHANG;
            // SAFETY: the status is writable.
            let waited = unsafe { libc::waitpid(self.0, &raw mut status, how) };
            if waited == self.0 && (libc::WIFEXITED(status) || libc::WIFSIGNALED(status)) {
                Ok(())
            } else {
                Err(format!("thread {} is alive: {waited} {status:#x}", self.0))
            }
        })
        .unwrap();
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above. It fails if the thread is gone.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, null, null) };
    }
}

/// The ids of the daemon's threads of this name.
fn threads(daemon: &DaemonProcess, name: &str) -> Vec<libc::pid_t> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    let named = tasks.filter(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    named.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn sigterm_ends_it_although_the_main_thread_is_stuck() {
    let mut daemon = spawn();
    let pid = libc::pid_t::try_from(daemon.pid()).unwrap();
    let _stopped = Stopped::new(pid);
    let ended = daemon.terminate(SOON).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists() && !daemon.control_socket().exists());
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn stuck_session_ends_the_daemon_with_its_own_status() {
    let mut daemon = spawn();
    let ram = Ram::new(&RamLayout::flat(64 << 20, Backing::Memfd)).unwrap();
    let guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    let workers = threads(&daemon, "vring_worker");
    assert_eq!(workers.len(), 1, "{:?}", daemon.threads());
    let stopped = Stopped::new(workers[0]);
    drop(guest);
    stopped.wait_until_dead();
    let status = daemon.wait(SOON).unwrap().expect("it ends");
    assert_eq!(status.code(), Some(4), "{}", daemon.log());
    assert!(!daemon.socket().exists() && !daemon.control_socket().exists());
    assert!(daemon.log().contains("did not end"), "{}", daemon.log());
}
