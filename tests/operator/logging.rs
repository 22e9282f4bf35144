// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Standard error that is not read, or read late, holds no thread of the daemon up.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use guest_driver::ram::Gpa;
use guest_driver::virtio::ring::Buffer;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, io, thread};
use tempfile::TempDir;
use vmm_integration::control::ControlSocket;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// The most bytes of a line of the log.
const MOST_BYTES: usize = 4096;
const REPORTING: u16 = 2;

/// A pipe that has room for a few lines and not for a long one.
fn small_pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    assert_eq!(fcntl_setpipe_size(&write, 16384).unwrap(), 16384);
    (read, write)
}

/// A daemon with this standard error.
struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    fn start(level: &str, stderr: OwnedFd) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(path("s")).arg("--control-socket").arg(path("c"));
        command.arg("--log-level").arg(level).stderr(stderr);
        // SAFETY: one system call, which neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let daemon = Self { child: command.spawn().unwrap(), dir };
        wait_until(SOON, LOOK_EVERY, || {
            UnixStream::connect(daemon.path("s")).map_err(|error| error.to_string())
        })
        .unwrap();
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn attach(&self) -> Attachment {
        let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd)).unwrap();
        let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
        Attachment::connect(&self.path("s"), &ram, options).unwrap()
    }

    fn expect_well(&self, guest: &mut Attachment) {
        guest.submit_and_wait(REPORTING, &[Buffer::writable(Gpa(8 * MIB), 4096)]).unwrap();
        ControlSocket::new(&self.path("c"), SOON).get("/v1/status").unwrap();
    }

    /// Sends SIGTERM and expects an end in order.
    fn terminate(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = wait_until(SOON, LOOK_EVERY, || {
            self.child.try_wait().map_err(|error| error.to_string())?.ok_or("there".to_owned())
        });
        assert_eq!(status.unwrap().code(), Some(0));
        assert!(!self.path("s").exists() && !self.path("c").exists());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A device state that is quoted in the error that says what is wrong with it.
fn quoted_state() -> Vec<u8> {
    let version = "é\\n".repeat(15_000);
    let format = r#"{"format":"vhost-device-balloon","balloon":{},"version":"#;
    format!("{format}\"{version}\"}}").into_bytes()
}

#[test]
fn long_lines_in_an_unread_pipe_hold_nothing_up() {
    let (_unread, stderr) = small_pipe();
    let daemon = Daemon::start("info", stderr);
    let mut guest = daemon.attach();
    for _ in 0..20 {
        assert!(guest.load_state(&quoted_state()).is_err());
    }
    daemon.expect_well(&mut guest);
    daemon.terminate();
}

#[test]
fn a_quoted_state_is_one_line_without_what_it_held() {
    let (read, stderr) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let daemon = Daemon::start("info", stderr);
    let mut guest = daemon.attach();
    assert!(guest.load_state(&quoted_state()).is_err());
    daemon.expect_well(&mut guest);
    drop(guest);
    daemon.terminate();
    let mut log = String::new();
    File::from(read).read_to_string(&mut log).unwrap();
    for line in log.lines() {
        assert!(line.len() < MOST_BYTES && line.starts_with('['), "{line}");
    }
    let told = |line: &&str| line.contains("cannot move the device's state");
    assert_eq!(log.lines().filter(told).count(), 1, "{log}");
    // The error names the place; that a record is cut is tested beside it.
    assert!(!log.contains('é'), "{log}");
}

/// What a line about a report says of how many bytes were discarded, which tells them apart.
fn reported_bytes(line: &str) -> Option<u64> {
    let (_, bytes) = line.split_once(" ranges named, ")?;
    bytes.split_once(' ')?.0.parse().ok()
}

#[test]
fn log_pipe_read_late_has_lines_in_order_and_losses() {
    const REPORTS: u64 = 6000;
    let (read, stderr) = small_pipe();
    let daemon = Daemon::start("debug", stderr);
    let mut guest = daemon.attach();
    let mut report = |pages: u64| {
        let bytes = u32::try_from(pages * PAGE).unwrap();
        guest.submit_and_wait(REPORTING, &[Buffer::writable(Gpa(8 * MIB), bytes)]).unwrap();
    };
    (1..=REPORTS).for_each(&mut report);
    // Only now it is read.
    let mut lines = BufReader::new(File::from(read)).lines().map(io::Result::unwrap);
    let mut seen = Vec::new();
    let lost: u64 = lines
        .by_ref()
        .find_map(|line| {
            seen.extend(reported_bytes(&line));
            line.strip_suffix(" log lines lost: standard error was not read")?.parse().ok()
        })
        .unwrap();
    let expected: Vec<_> = (1..).take(seen.len()).map(|pages: u64| pages * PAGE).collect();
    assert_eq!(seen, expected);
    assert_eq!(u64::try_from(seen.len()).unwrap() + lost, REPORTS);
    report(REPORTS + 1);
    let next = lines.find_map(|line| reported_bytes(&line)).unwrap();
    assert_eq!(next, (REPORTS + 1) * PAGE);
    let rest = thread::spawn(move || lines.count());
    daemon.terminate();
    rest.join().unwrap();
}

#[test]
fn a_failure_to_start_is_told_and_ends() {
    let socket = Path::new("/none/s");
    let run = |stderr: Stdio| {
        Command::new(BINARY).arg("--socket-path").arg(socket).stderr(stderr).spawn().unwrap()
    };
    let output = run(Stdio::piped()).wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.starts_with("vhost-device-balloon: cannot listen on /none/s"), "{log}");
    assert_eq!(output.status.code(), Some(1));
}
