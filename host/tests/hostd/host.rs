// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host for tests: a directory of control sockets, daemons, impostors, and hostd.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde_json::Value;
use tempfile::TempDir;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;

/// This program.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon-host");

/// What is waited for takes less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at something that has no event.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The daemon's program as the sources have it now: cargo does not build it for tests of this package.
pub(crate) fn daemon_binary() -> PathBuf {
    static BUILT: Once = Once::new();
    let binary = Path::new(BINARY).with_file_name("vhost-device-balloon");
    BUILT.call_once(|| {
        let build = ["build", "--quiet", "--package", "vhost-device-balloon"];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    });
    binary
}

/// A directory of control sockets.
pub(crate) struct Host {
    pub(crate) dir: TempDir,
    daemons: Vec<DaemonProcess>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), daemons: Vec::new() }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Starts the daemon of a VM.
    pub(crate) fn daemon(&mut self, vm: &str, args: &[&str]) -> &mut DaemonProcess {
        let daemon = DaemonProcess::spawn_controlled(&daemon_binary(), args).unwrap();
        symlink(daemon.control_socket(), self.path(&format!("{vm}.ctl"))).unwrap();
        self.daemons.push(daemon);
        self.daemons.last_mut().unwrap()
    }

    /// Something that listens where the daemon of a VM should, and does this with each client.
    pub(crate) fn impostor(&self, vm: &str, conduct: fn(UnixStream)) {
        let listener = UnixListener::bind(self.path(&format!("{vm}.ctl"))).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || conduct(stream.unwrap()));
            }
        });
    }

    /// Starts hostd, and waits until it listens.
    pub(crate) fn hostd(&self, args: &[&str]) -> Hostd {
        let hostd = Hostd::start(self.dir.path(), args);
        hostd.wait_for("listening on ");
        hostd
    }
}

/// hostd as a process, which ends with the test.
pub(crate) struct Hostd {
    child: Child,
    pub(crate) socket: PathBuf,
    log: Arc<Mutex<String>>,
    lines: Receiver<()>,
}

impl Hostd {
    /// Starts it for the control sockets in `dir`.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Self {
        Self::listening(dir, dir.join("hostd.sock"), args)
    }

    /// Starts it for the control sockets of a host, with its own of this name.
    pub(crate) fn start_at(host: &Host, socket: &str, args: &[&str]) -> Self {
        Self::listening(host.dir.path(), host.path(socket), args)
    }

    fn listening(dir: &Path, socket: PathBuf, args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("hostd").arg("--sockets").arg(dir).arg("--socket").arg(&socket).args(args);
        command.stderr(Stdio::piped()).env_remove("JOURNAL_STREAM");
        // SAFETY: one system call, which neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (written, lines) = channel();
        let log = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&log);
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &format!("{line}\n");
                // The test may be over.
                let _ = written.send(());
            }
        });
        Self { child, socket, log, lines }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log holds `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        while !self.log().contains(text) {
            let waited = self.lines.recv_timeout(PATIENCE);
            assert!(waited.is_ok() || self.log().contains(text), "no {text:?} in {}", self.log());
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn control(&self) -> ControlSocket {
        ControlSocket::new(&self.socket, PATIENCE)
    }

    /// What it knows.
    pub(crate) fn view(&self) -> Value {
        let answer = self.get("/v1/host", "");
        serde_json::from_str(&answer.1).unwrap()
    }

    /// Waits until what it knows is like that.
    pub(crate) fn wait_until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        wait_until(PATIENCE, LOOK_EVERY, || {
            let view = self.view();
            if holds(&view) {
                Ok(view)
            } else {
                Err(format!("not {what}: {view:#}\n{}", self.log()))
            }
        })
        .unwrap()
    }

    /// The head and the body of an answer.
    pub(crate) fn get(&self, path: &str, fields: &str) -> (String, String) {
        let mut stream = self.control().connect().unwrap();
        ask(&mut stream, path, fields)
    }

    /// The page of metrics in OpenMetrics.
    pub(crate) fn page(&self) -> String {
        self.get("/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n").1
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_until(PATIENCE, LOOK_EVERY, || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(format!("still there\n{}", self.log.lock().unwrap())),
        })
        .unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Hostd {
    fn drop(&mut self) {
        // Both fail only when it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks, and returns the head and the body of the answer.
pub(crate) fn ask(
    stream: &mut (impl Read + std::io::Write),
    path: &str,
    fields: &str,
) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

/// Removes the socket of a VM's daemon.
pub(crate) fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}
