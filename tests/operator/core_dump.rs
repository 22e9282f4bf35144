// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon leaves no core dump, which would hold its guest's memory.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOON: Duration = Duration::from_secs(60);

fn allow_core(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    prlimit(pid, Resource::Core, Rlimit { current: None, maximum: None }).unwrap();
}

/// What a process comes to that may dump core, as far as this machine lets any.
fn aborted_sleep(dir: &Path) -> ExitStatus {
    let mut sleep = Command::new("sleep").arg("1000").current_dir(dir).spawn().unwrap();
    allow_core(sleep.id());
    kill_process(Pid::from_child(&sleep), Signal::ABORT).unwrap();
    sleep.wait().unwrap()
}

#[test]
#[ignore = "needs root and core dumps: cargo xtask test"]
fn a_daemon_that_aborts_leaves_no_core() {
    let dir = tempfile::tempdir().unwrap();
    assert!(aborted_sleep(dir.path()).core_dumped(), "this machine dumps no cores");
    // The sandbox forbids it once more.
    let options = DaemonOptions { args: vec!["--sandbox=none".into()], ..DaemonOptions::default() };
    let mut daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
    allow_core(daemon.pid());
    daemon.signal(Signal::ABORT).unwrap();
    let status = daemon.wait(SOON).unwrap().expect("it ends");
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
    assert!(!status.core_dumped(), "{status}");
}
