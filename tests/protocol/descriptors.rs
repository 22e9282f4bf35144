// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How many descriptors a frontend can take, and what is left to operators.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use crate::raw::{Raw, Region, all_features};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use vhost::vhost_user::message::FrontendReq as R;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;

const SOON: Duration = Duration::from_secs(30);
const PAGE: u64 = 4096;

fn start() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn_controlled(binary, std::iter::empty::<&str>()).unwrap()
}

#[test]
fn soft_limit_at_start_raised_to_hard() {
    let daemon = start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = open.split_whitespace().skip(3);
    let (soft, hard) = (numbers.next().unwrap(), numbers.next().unwrap());
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    assert_eq!(number(soft), number(hard).min(65_536), "{open}");
}

/// As many regions as are taken, and half a message with as many descriptors as one can have.
#[test]
fn frontend_with_all_it_gets_leaves_operators_theirs() {
    let daemon = start();
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let limit = Rlimit { current: Some(256), maximum: Some(256) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
    let mut raw = Raw::connect(&daemon, all_features());
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 1000 * PAGE).unwrap();
    let region = |i: u64| Region {
        gpa: i * PAGE,
        bytes: PAGE,
        user: (1 << 40) + i * PAGE,
        offset: i * PAGE,
    };
    let taken = (0..1000)
        .take_while(|i| {
            raw.ask(R::ADD_MEM_REG, &region(*i).single(), &[file.as_raw_fd()]) == Some(0)
        })
        .count();
    assert_eq!(taken, 256 - 160);
    // The refusal may have ended that session: one that holds all that it may is another one.
    drop(raw);
    let mut raw = Raw::connect(&daemon, all_features());
    for i in 0..96 {
        let answer = raw.ask(R::ADD_MEM_REG, &region(i).single(), &[file.as_raw_fd()]);
        assert_eq!(answer, Some(0), "region {i}");
    }
    let many: Vec<RawFd> = vec![file.as_raw_fd(); 32];
    raw.send_part(R::ADD_MEM_REG, 40, &[0; 8], &many);
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    let open: Vec<_> = (0..20).map(|_| control.connect().unwrap()).collect();
    assert_eq!(control.get("/v1/status").unwrap()["connected"], true);
    drop((open, raw));
}
