// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a service of systemd: sockets that it is passed, what it reports, its journal.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use rustix::fs::fstat;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;
use vmm_integration::control::ControlSocket;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;

/// What the service manager passes, and from which number on.
const FIRST_FD: i32 = 3;

/// Plays the service manager.
struct Manager {
    dir: TempDir,
    told: UnixDatagram,
}

/// A started daemon. Killed when dropped.
struct Service(Child);

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let told = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        told.set_read_timeout(Some(SOON)).unwrap();
        Self { dir, told }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn listener(&self, name: &str) -> OwnedFd {
        UnixListener::bind(self.path(name)).unwrap().into()
    }

    /// A daemon that is passed `sockets`, with these arguments and variables.
    fn start(&self, sockets: Vec<OwnedFd>, args: &[&str], env: &[(&str, &str)]) -> Service {
        // The shell becomes the daemon, and is the only one that knows its number before.
        let script = "LISTEN_PID=${LISTEN_PID-$$} exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, BINARY, "--socket-path"]).arg(self.path("own")).args(args);
        command.env("NOTIFY_SOCKET", self.path("notify"));
        command.env("LISTEN_FDS", sockets.len().to_string()).envs(env.iter().copied());
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        // Out of the way of the numbers that they get.
        let sockets: Vec<_> =
            sockets.iter().map(|fd| fcntl_dupfd_cloexec(fd, 100).unwrap()).collect();
        // SAFETY: system calls, which neither allocate nor take a lock.
        unsafe {
            command.pre_exec(move || {
                for (number, socket) in (FIRST_FD..).zip(&sockets) {
                    if libc::dup2(socket.as_raw_fd(), number) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
            });
        }
        Service(command.spawn().unwrap())
    }

    fn expect_told(&self, expected: &str) {
        let mut bytes = [0; 4096];
        let len = self.told.recv(&mut bytes).unwrap();
        assert_eq!(std::str::from_utf8(&bytes[..len]).unwrap(), expected);
    }

    fn expect_ready(&self) {
        self.expect_told("READY=1\nSTATUS=waiting for a VMM");
    }

    /// Attaches at this socket and has a report served.
    fn expect_served(&self, name: &str) {
        let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd)).unwrap();
        let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
        let mut guest = Attachment::connect(&self.path(name), &ram, options).unwrap();
        let range = GpaRange::new(Gpa(8 * MIB), MIB).unwrap();
        guest.ram().write_pattern(range, 1).unwrap();
        guest.submit_and_wait(REPORTING, &[Buffer::writable(Gpa(8 * MIB), 1 << 20)]).unwrap();
        assert!(guest.ram().is_zero(range).unwrap());
    }
}

impl Service {
    fn signal(&self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
    }

    /// Waits for its end; returns its exit status and what it wrote.
    fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.0.wait().unwrap(), log)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn passed_sockets_are_served_and_states_told() {
    let manager = Manager::new();
    let sockets = vec![manager.listener("c"), manager.listener("f")];
    let c = manager.path("c");
    let args = ["--control-socket", c.to_str().unwrap()];
    let service = manager.start(sockets, &args, &[("LISTEN_FDNAMES", "control:frontend")]);
    manager.expect_ready();
    for _ in 0..2 {
        manager.expect_served("f");
        manager.expect_told("STATUS=serving a VMM");
        manager.expect_told("STATUS=waiting for a VMM");
    }
    let control = ControlSocket::new(&manager.path("c"), SOON);
    assert!(control.get("/v1/status").is_ok());
    service.signal();
    manager.expect_told("STOPPING=1");
    let (status, log) = service.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!manager.path("own").exists());
    // They are the service manager's.
    assert!(manager.path("f").exists() && manager.path("c").exists());
}

#[test]
fn one_passed_socket_leaves_the_other_to_the_daemon() {
    let manager = Manager::new();
    let own = manager.path("own-c");
    let args = ["--control-socket", own.to_str().unwrap()];
    let sockets = vec![manager.listener("f")];
    let service = manager.start(sockets, &args, &[("LISTEN_FDNAMES", "frontend")]);
    manager.expect_ready();
    manager.expect_served("f");
    assert!(ControlSocket::new(&own, SOON).get("/v1/status").is_ok());
    service.signal();
    assert_eq!(service.end().0.code(), Some(0));
    assert!(!own.exists());
    drop(manager);

    let manager = Manager::new();
    let c = manager.path("c");
    let args = ["--control-socket", c.to_str().unwrap()];
    let sockets = vec![manager.listener("c")];
    let _service = manager.start(sockets, &args, &[("LISTEN_FDNAMES", "control")]);
    manager.expect_ready();
    manager.expect_served("own");
    assert!(ControlSocket::new(&manager.path("c"), SOON).get("/v1/status").is_ok());
}

#[test]
fn sockets_of_another_process_are_not_taken() {
    let manager = Manager::new();
    let _service = manager.start(vec![manager.listener("f")], &[], &[("LISTEN_PID", "1")]);
    manager.expect_ready();
    manager.expect_served("own");
}

#[test]
fn passed_descriptor_of_another_kind_is_refused() {
    let manager = Manager::new();
    let datagrams: OwnedFd = UnixDatagram::unbound().unwrap().into();
    let (connected, _other) = UnixStream::pair().unwrap();
    for fd in [datagrams, connected.into()] {
        for name in ["frontend", "control"] {
            let args = ["--control-socket", "/run/c"];
            let sockets = vec![fd.try_clone().unwrap()];
            let (status, log) = manager.start(sockets, &args, &[("LISTEN_FDNAMES", name)]).end();
            assert_eq!(status.code(), Some(1), "{name}: {log}");
            assert!(log.contains("expected a Unix stream socket that listens"), "{name}: {log}");
        }
    }
}

/// A line for the journal has a priority and no time; another standard error has it the other way.
#[test]
fn journal_gets_priorities_and_no_time() {
    let manager = Manager::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(SOON)).unwrap();
    let theirs = OwnedFd::from(theirs);
    let stat = fstat(&theirs).unwrap();
    let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(manager.path("s")).env("JOURNAL_STREAM", &stream);
    let mut service = Service(command.stderr(theirs).spawn().unwrap());
    drop(command);
    let mut lines = BufReader::new(ours).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    assert!(first.starts_with("<6>[INFO  vhost_device_balloon::daemon"), "{first}");
    assert!(first.contains("] listening on "), "{first}");
    service.signal();
    service.0.wait().unwrap();
    assert!(lines.all(|line| line.starts_with("<6>[INFO ")));

    let failed = |stream: &str| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let stat = fstat(&theirs).unwrap();
        let own = format!("{}:{}", stat.st_dev, stat.st_ino);
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(manager.path("none/s"));
        command.env("JOURNAL_STREAM", if stream.is_empty() { &own } else { stream });
        let mut child = command.stderr(theirs).spawn().unwrap();
        drop(command);
        child.wait().unwrap();
        let mut log = String::new();
        BufReader::new(ours).read_to_string(&mut log).unwrap();
        log
    };
    let own = failed("");
    assert!(own.starts_with("<3>vhost-device-balloon: cannot listen on"), "{own}");
    let other = failed(&stream);
    assert!(other.starts_with("vhost-device-balloon: cannot listen on"), "{other}");
}

/// systemd's own program to try socket activation.
#[test]
#[ignore = "needs systemd: cargo xtask test"]
fn socket_activation_of_systemd_starts_the_daemon() {
    let manager = Manager::new();
    let mut command = Command::new("systemd-socket-activate");
    for name in ["f", "c"] {
        command.arg("--listen").arg(manager.path(name));
    }
    command.arg("--fdname=frontend:control").arg("-E").arg("NOTIFY_SOCKET");
    command.env("NOTIFY_SOCKET", manager.path("notify"));
    command.arg(BINARY).arg("--socket-path").arg(manager.path("own"));
    command.arg("--control-socket").arg(manager.path("c"));
    // SAFETY: one system call, which neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let service = Service(command.stderr(Stdio::piped()).spawn().unwrap());
    // The program listens on one socket after the other, and starts the daemon for a connection.
    wait_until(SOON, Duration::from_millis(1), || {
        let there = ["f", "c"].iter().all(|name| manager.path(name).exists());
        if there { Ok(()) } else { Err("no sockets".to_owned()) }
    })
    .unwrap();
    manager.expect_served("f");
    manager.expect_ready();
    assert!(ControlSocket::new(&manager.path("c"), SOON).get("/v1/status").is_ok());
    service.signal();
    let (status, log) = service.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(fs::exists(manager.path("f")).unwrap() && !manager.path("own").exists());
}
