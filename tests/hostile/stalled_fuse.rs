// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A FUSE file as guest memory, whose server answers nothing.
//!
//! The test runs alone in a process: a child that another test starts closes its copy of the file
//! before it runs, and would wait for that server with copies of all connections open.

use std::env;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq as R;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};

use crate::fuse::Fuse;
use crate::raw::{Raw, Region, all_features};

const MIB: u64 = 1 << 20;
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const TIMEOUT: Duration = Duration::from_secs(20);

/// Set in the process that runs the test alone.
const ALONE: &str = "BALLOON_TEST_FUSE_ALONE";

/// Its server could keep everything that touches the file waiting, its `close` included.
#[test]
#[ignore = "needs root and FUSE: cargo xtask test"]
fn fuse_file_refused_without_asking_its_server() {
    if env::var_os(ALONE).is_none() {
        let mut alone = Command::new(env::current_exe().unwrap());
        alone.args(["--include-ignored", "--exact"]).env(ALONE, "1");
        alone.arg("stalled_fuse::fuse_file_refused_without_asking_its_server");
        let output = alone.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let fuse = Fuse::mount();
    for args in [vec![], vec!["--allow-file-memory".into()]] {
        let options = DaemonOptions { args, ..DaemonOptions::default() };
        let mut daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
        let stalled = fuse.stall();
        let fds = [fuse.file.as_raw_fd()];
        let region = Region { gpa: 0, bytes: MIB, user: 1 << 40, offset: 0 }.single();
        let queue = 0_u64.to_ne_bytes();
        let log = [4096_u64, 0].map(u64::to_ne_bytes).concat();
        for (request, payload, says) in [
            (R::ADD_MEM_REG, region.as_slice(), "it lies on fuse"),
            (R::SET_VRING_KICK, &queue, "comes with a file"),
            (R::SET_LOG_BASE, &log, "the dirty log of 4096 bytes"),
        ] {
            let mut raw = Raw::connect(&daemon, all_features());
            assert_eq!(raw.ask(request, payload, &fds), Some(1), "{request:?}");
            assert!(daemon.wait_for_log(says, TIMEOUT).unwrap(), "{}", daemon.log());
        }
        drop(Raw::connect(&daemon, all_features()));
        // Its threads that close the file are the server's to let go.
        daemon.signal(rustix::process::Signal::TERM).unwrap();
        assert!(daemon.wait_for_log("session:", TIMEOUT).unwrap());
        drop(stalled);
        assert!(daemon.wait(TIMEOUT).unwrap().is_some_and(|status| status.success()));
    }
}
