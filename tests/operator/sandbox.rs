// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sandbox of a daemon that serves a VMM, as the kernel shows it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(10);
const MIB: u64 = 1 << 20;
/// Users that exist everywhere and own nothing.
const NOBODY: u32 = 65_534;

fn started(args: &[&str]) -> DaemonProcess {
    let args = args.iter().map(Into::into).collect();
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    DaemonProcess::spawn(Path::new(BINARY), &options).unwrap()
}

/// Ends with its test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A field of `/proc/PID/task/TID/status`, a line a thread.
fn of_threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may have ended meanwhile.
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    tasks
        .filter_map(|task| {
            let status = status(task.unwrap())?;
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim();
            Some(line.to_owned())
        })
        .collect()
}

fn namespace(pid: &str, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap()
}

#[track_caller]
fn assert_confined(pid: u32) {
    let all = |field, expected: &str| {
        let found = of_threads(pid, field);
        assert!(found.len() > 4, "the threads of a session: {}", found.len());
        assert!(found.iter().all(|value| value == expected), "{field} {found:?}");
    };
    // seccomp's mode 2 is a filter.
    all("Seccomp:", "2");
    // The worker has one more.
    let filters = of_threads(pid, "Seccomp_filters:");
    let most = filters.iter().max().unwrap();
    assert_eq!(filters.iter().filter(|count| *count == most).count(), 1, "{filters:?}");
    all("NoNewPrivs:", "1");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        all(set, "0000000000000000");
    }
}

fn attach(socket: &Path) -> (Ram, Attachment) {
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let guest = Attachment::connect(socket, &ram, AttachOptions::default()).unwrap();
    (ram, guest)
}

#[test]
fn daemon_that_serves_is_confined() {
    let daemon = started(&[]);
    let (_ram, mut guest) = attach(&daemon.socket());
    assert!(guest.given_back(GpaRange::new(Gpa(4 * MIB), MIB).unwrap()).unwrap());
    assert_confined(daemon.pid());
}

#[test]
fn sandbox_that_is_off_says_so() {
    let daemon = started(&["--sandbox", "none"]);
    assert!(daemon.wait_for_log("the sandbox is off (--sandbox none)", SOON).unwrap());
    // As of this test's own process.
    assert_eq!(
        of_threads(daemon.pid(), "Seccomp:")[0],
        of_threads(std::process::id(), "Seccomp:")[0]
    );
    let daemon = started(&["--sandbox", "log"]);
    assert!(daemon.wait_for_log("logs system calls that it would deny", SOON).unwrap());
    assert!(of_threads(daemon.pid(), "Seccomp:").iter().all(|mode| mode == "2"));
}

/// What the tests of a user without rights need root for: to be another user.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn daemon_of_any_user_has_no_files_and_no_network() {
    assert!(geteuid().is_root());
    let binary = tempfile::tempdir().unwrap();
    fs::set_permissions(binary.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = binary.path().join("daemon");
    assert!(Command::new("cp").arg(BINARY).arg(&program).status().unwrap().success());
    for user in [0, NOBODY] {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::chown(dir.path(), Some(rustix::fs::Uid::from_raw(user)), None).unwrap();
        let (socket, control) = (dir.path().join("s"), dir.path().join("c"));
        let mut command = Command::new(&program);
        command.arg("--socket-path").arg(&socket).arg("--control-socket").arg(&control);
        let child = command.uid(user).gid(user).stderr(Stdio::null()).spawn().unwrap();
        let mut child = Started(child);
        wait_until(
            SOON,
            EVERY,
            || {
                if socket.exists() { Ok(()) } else { Err("no socket".to_owned()) }
            },
        )
        .unwrap();
        let (_ram, mut guest) = attach(&socket);
        assert!(guest.given_back(GpaRange::new(Gpa(4 * MIB), MIB).unwrap()).unwrap());
        assert_confined(child.0.id());
        let pid = child.0.id().to_string();
        for kind in ["mnt", "net", "ipc"] {
            assert_ne!(namespace(&pid, kind), namespace("self", kind), "{kind} of user {user}");
        }
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let sizes: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(sizes, ["0", "0"], "{core}");
        // A client that is another user there.
        let status = ControlSocket::new(&control, SOON).get("/v1/status").unwrap();
        assert_eq!(status["connected"], true);
        drop(guest);
        kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(0));
        assert!(!socket.exists() && !control.exists(), "its sockets are gone");
    }
}
