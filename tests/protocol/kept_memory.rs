// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory whose pages stay: what the log and the status say, and what is not in a core dump.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
const TIMEOUT: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

/// Reports a mebibyte of memory on a tmpfs with a limit: whether it was given back, what the status
/// says of the region, and the daemon's log.
fn limited(args: &[&str]) -> (bool, serde_json::Value, String) {
    let backing = Backing::LimitedTmpfs { limit_bytes: SIZE };
    let ram = Ram::new(&RamLayout::flat(SIZE, backing)).unwrap();
    ram.populate(GpaRange::new(Gpa(0), SIZE).unwrap()).unwrap();
    let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    let gone = guest.given_back(GpaRange::new(Gpa(8 * MIB), MIB).unwrap()).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), TIMEOUT);
    let status = control.get("/v1/status").unwrap();
    drop(guest);
    daemon.session_summary(TIMEOUT).unwrap();
    (gone, status["memory"]["regions"][0]["kept_for"].clone(), daemon.log())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn limited_tmpfs_without_the_option_is_kept() {
    let (gone, kept_for, log) = limited(&[]);
    assert!(!gone && kept_for == "limited_tmpfs", "{kept_for} {log}");
    let line = log.lines().filter(|line| line.contains("--allow-limited-tmpfs"));
    let line: Vec<&str> = line.collect();
    assert!(line.len() == 1 && line[0].contains("(prealloc)"), "{log}");
    assert!(log.contains(&format!("skipped_limited_tmpfs=1/{MIB}")), "{log}");
    let (gone, kept_for, log) = limited(&["--allow-limited-tmpfs"]);
    assert!(gone && kept_for.is_null(), "{kept_for} {log}");
}

#[test]
fn guest_memory_is_left_out_of_core_dumps() {
    let mut layout = RamLayout::default();
    let file = layout.file(Backing::Memfd);
    let layout = layout.region(Gpa(0), SIZE, file, 0).region(Gpa(4 << 30), SIZE, file, SIZE);
    let ram = Ram::new(&layout).unwrap();
    let daemon =
        DaemonProcess::spawn_controlled(Path::new(BINARY), std::iter::empty::<&str>()).unwrap();
    let options = AttachOptions { regions: Some(vec![0]), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    // One that comes later as well.
    guest.add_region(1).unwrap();
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let mut regions = 0;
    let mut in_region = false;
    for line in smaps.lines() {
        if line.contains("memfd:guest-ram") {
            (regions, in_region) = (regions + 1, true);
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| in_region) {
            assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
            in_region = false;
        }
    }
    assert_eq!(regions, 2, "{smaps}");
}
