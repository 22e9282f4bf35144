// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many daemons that start at once, and clients that connect while one starts.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;
use vmm_integration::measure::host::{leave_dead_socket, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(60);
const DAEMONS: usize = 50;

/// A daemon that may fail to start. Killed when dropped.
struct Daemon(Option<Child>);

impl Daemon {
    fn start(socket: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(socket).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: one system call, which neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        Self(Some(command.spawn().unwrap()))
    }

    /// Has it end, if it runs, and returns its exit status and log.
    fn end(mut self) -> Output {
        let child = self.0.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wait_for(what: impl Fn() -> Result<(), String>) {
    wait_until(SOON, Duration::from_millis(1), what).unwrap();
}

fn wait_for_socket(path: &Path) {
    wait_for(|| UnixStream::connect(path).map(drop).map_err(|error| error.to_string()));
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts many, some at the places of dead daemons: all of them listen.
fn start_together(dir: &TempDir) {
    let paths: Vec<PathBuf> = (0..DAEMONS).map(|n| dir.path().join(format!("{n}.sock"))).collect();
    for path in paths.iter().step_by(3) {
        leave_dead_socket(path).unwrap();
    }
    let daemons: Vec<_> = paths.iter().map(|path| Daemon::start(path, &[])).collect();
    paths.iter().for_each(|path| wait_for_socket(path));
    for daemon in daemons {
        let output = daemon.end();
        assert_eq!(output.status.code(), Some(0), "{}", log(&output));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn daemons_that_start_at_once_all_listen() {
    start_together(&tempfile::tempdir().unwrap());
}

/// Any user who may read a folder can lock it.
#[test]
fn daemons_start_in_a_folder_that_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let folder = File::open(dir.path()).unwrap();
    folder.lock().unwrap();
    start_together(&dir);
}

#[test]
fn one_of_many_daemons_at_a_path_listens() {
    for dead in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        if dead {
            leave_dead_socket(&path).unwrap();
        }
        let mut daemons: Vec<_> = (0..10).map(|_| Daemon::start(&path, &[])).collect();
        wait_for_socket(&path);
        // The others end by themselves.
        let mut losers = Vec::new();
        while daemons.len() > 1 {
            let ended = daemons
                .iter_mut()
                .position(|daemon| daemon.0.as_mut().unwrap().try_wait().unwrap().is_some());
            match ended {
                Some(place) => losers.push(daemons.swap_remove(place)),
                None => std::thread::yield_now(),
            }
        }
        for mut loser in losers {
            let output = loser.0.take().unwrap().wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert!(log(&output).contains("already listens"), "{}", log(&output));
        }
        assert!(UnixStream::connect(&path).is_ok());
        let output = daemons.pop().unwrap().end();
        assert_eq!(output.status.code(), Some(0), "{}", log(&output));
        let said = log(&output).contains("replaced the socket of a daemon that died");
        assert_eq!(said, dead, "{}", log(&output));
    }
}

#[test]
fn client_that_sees_the_socket_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..100 {
        let sockets = ["frontend", "control"].map(|name| dir.path().join(format!("{name}{round}")));
        let args = ["--control-socket", sockets[1].to_str().unwrap()];
        let daemon = Daemon::start(&sockets[0], &args);
        for socket in &sockets {
            // No pause: the moment between bind and listen is short.
            while !socket.exists() {
                std::hint::spin_loop();
            }
            UnixStream::connect(socket).unwrap();
        }
        drop(daemon);
    }
}

#[test]
fn socket_has_the_mode_and_group_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let is_root = rustix::process::geteuid().is_root();
    let own = rustix::process::getegid().as_raw();
    let group = if is_root { 4321 } else { own };
    let name = group.to_string();
    let with = ["--socket-mode", "0660", "--socket-group", &name];
    for (args, mode, group) in [(&[][..], 0o600, own), (&with, 0o660, group)] {
        let mut command = Command::new("sh");
        // The shell becomes the daemon.
        command.args(["-c", "umask 0; exec \"$0\" \"$@\"", BINARY, "--socket-path"]);
        command.arg(&path).args(args).stderr(Stdio::null());
        let daemon = Daemon(Some(command.spawn().unwrap()));
        wait_for_socket(&path);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        assert_eq!(metadata.gid(), group);
        drop(daemon);
    }
}
