// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the complete device does for an unmodified Linux guest: target, statistics, pause and
//! resume, huge pages, memory that is added while it runs.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::{resident_bytes, wait_until};
use vmm_integration::measure::hugetlb::Pool;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

/// A daemon with a control socket.
struct Daemon {
    process: DaemonProcess,
}

impl Daemon {
    fn start(args: &[&str]) -> Self {
        Self { process: DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap() }
    }

    /// Runs `ctl` and returns its answer.
    fn ctl(&self, args: &[&str]) -> Value {
        let output = Command::new(BINARY)
            .args(["ctl", "--json", "--timeout", "60", "--control-socket"])
            .arg(self.process.control_socket())
            .args(args)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}\n{}", self.process.log());
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn number(&self, command: &str, path: &str) -> u64 {
        let answer = self.ctl(&[command]);
        answer.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {answer}"))
    }
}

fn boot(daemon: &Daemon, config: GuestConfig) -> LinuxGuest {
    let toolbox = qemu::available().unwrap();
    let balloon = Balloon::VhostUser { socket: daemon.process.socket() };
    let guest = LinuxGuest::boot(&toolbox, GuestConfig { balloon, ..config }).unwrap();
    guest.load_balloon_driver("").unwrap();
    guest
}

fn until(what: impl FnMut() -> Result<(), String>) {
    wait_until(PATIENCE, LOOK_EVERY, what).unwrap();
}

/// The file behind the memory that was added, of QEMU's the one of that size.
fn added_memory(guest: &LinuxGuest, bytes: u64) -> File {
    let folder = format!("/proc/{}/fd", guest.qemu_pid());
    let memfds = fs::read_dir(folder).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let target = fs::read_link(&path).ok()?;
        target.to_string_lossy().starts_with("/memfd:memory-backend-memfd").then_some(path)
    });
    let mut opened = memfds.map(|path| File::open(path).unwrap());
    opened.find(|file| file.metadata().unwrap().len() == bytes).unwrap()
}

/// Adds 512 MiB, has the guest use them, and waits until nearly all of what it frees is discarded.
fn added_memory_is_used_and_discarded(guest: &LinuxGuest, add: impl FnOnce(&LinuxGuest)) {
    let before = total(guest);
    add(guest);
    until(|| match total(guest) {
        now if now >= before + 512 * MIB => Ok(()),
        now => Err(format!("{now} bytes, {before} before")),
    });
    let added = added_memory(guest, 512 * MIB);
    // More than there was without it, so that a good part of it is used.
    let agent = guest.agent();
    agent.alloc(1, 1024 * MIB, 1).unwrap();
    let used = resident_bytes(&added).unwrap();
    assert!(used >= 256 * MIB, "{used} bytes of the new memory used");
    assert_eq!(agent.expect_intact(1).unwrap(), 1024 * MIB);
    agent.free(1).unwrap();
    until(|| match resident_bytes(&added).unwrap() {
        now if now <= used / 10 => Ok(()),
        now => Err(format!("{now} bytes of the new memory resident, {used} when it was used")),
    });
}

fn total(guest: &LinuxGuest) -> u64 {
    let text = guest.agent().read_file("/proc/meminfo").unwrap();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The target goes up: the guest's memory shrinks and the host has it. It goes down: it is the
/// guest's again.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn target_takes_guest_memory_and_later_returns_it() {
    let daemon = Daemon::start(&[]);
    let guest = boot(&daemon, GuestConfig::default());
    let agent = guest.agent();
    agent.alloc(1, 512 * MIB, 1).unwrap();
    agent.free(1).unwrap();
    let before = total(&guest);
    daemon.ctl(&["target", "384M"]);
    until(|| {
        let (now, actual) = (total(&guest), daemon.number("status", "/actual_bytes"));
        match actual == 384 * MIB && now == before - 384 * MIB {
            true => Ok(()),
            false => Err(format!("{now} of {before} bytes, {actual} in the balloon")),
        }
    });
    // Nobody but the balloon has given so much back if the rest is in use.
    agent.alloc(2, 256 * MIB, 2).unwrap();
    until(|| {
        let resident = guest.resident_bytes().unwrap();
        if resident <= 640 * MIB { Ok(()) } else { Err(format!("{resident} bytes resident")) }
    });
    assert_eq!(agent.expect_intact(2).unwrap(), 256 * MIB);
    daemon.ctl(&["target", "0"]);
    until(|| match (total(&guest), daemon.number("status", "/actual_bytes")) {
        (now, 0) if now == before => Ok(()),
        (now, actual) => Err(format!("{now} of {before} bytes, {actual} in the balloon")),
    });
    // And it is memory.
    agent.alloc(3, 512 * MIB, 3).unwrap();
    assert_eq!(agent.expect_intact(3).unwrap(), 512 * MIB);
    assert_eq!(agent.expect_intact(2).unwrap(), 256 * MIB);
    assert_eq!(guest.quit().unwrap(), "");
}

/// Every tag that the kernel sends, and fresh ones when asked.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn linux_sends_its_statistics_when_asked() {
    let daemon = Daemon::start(&["--statistics"]);
    let guest = boot(&daemon, GuestConfig::default());
    let sample = || {
        let sample = daemon.ctl(&["statistics", "--refresh"]);
        let values: Vec<(String, u64)> = sample
            .pointer("/sample/values")
            .and_then(Value::as_object)
            .map(|values| {
                values.iter().filter_map(|(k, v)| Some((k.clone(), v.as_u64()?))).collect()
            })
            .unwrap_or_default();
        values
    };
    let mut values = Vec::new();
    until(|| {
        values = sample();
        if values.is_empty() { Err("no sample".to_owned()) } else { Ok(()) }
    });
    // All that the specification knows, and Linux since 6.12.
    assert_eq!(values.len(), 16, "{values:?}");
    let value = |name: &str| values.iter().find(|(tag, _)| tag == name).map(|(_, value)| *value);
    assert_eq!(value("total_bytes"), Some(total(&guest)), "{values:?}");
    let free = value("free_bytes").unwrap();
    guest.agent().alloc(1, 256 * MIB, 1).unwrap();
    until(|| {
        let now = sample().into_iter().find(|(tag, _)| tag == "free_bytes").map_or(free, |v| v.1);
        if now + 128 * MIB <= free { Ok(()) } else { Err(format!("{now} free, {free} before")) }
    });
    // Reporting has another queue now, and works.
    guest.agent().free(1).unwrap();
    until(|| match daemon.number("counters", "/discarded_bytes") {
        bytes if bytes >= 200 * MIB => Ok(()),
        bytes => Err(format!("{bytes} bytes discarded")),
    });
    assert_eq!(guest.quit().unwrap(), "");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn guest_pages_while_paused_stay_until_resume() {
    let daemon = Daemon::start(&["--paused"]);
    let guest = boot(&daemon, GuestConfig::default());
    let agent = guest.agent();
    agent.alloc(1, 384 * MIB, 1).unwrap();
    agent.free(1).unwrap();
    let skipped = || daemon.number("counters", "/skipped_bytes/paused");
    until(|| if skipped() >= 300 * MIB { Ok(()) } else { Err(format!("{} skipped", skipped())) });
    assert_eq!(daemon.number("counters", "/discarded_bytes"), 0);
    let resident = guest.resident_bytes().unwrap();
    assert!(resident >= 384 * MIB, "{resident} bytes resident");
    daemon.ctl(&["resume"]);
    // What was skipped comes back when the guest has used it again: Linux takes it last.
    agent.alloc(1, 768 * MIB, 2).unwrap();
    agent.free(1).unwrap();
    until(|| match guest.resident_bytes().unwrap() {
        now if now + 200 * MIB <= resident => Ok(()),
        now => Err(format!("{now} bytes resident, {resident} before")),
    });
    assert_eq!(guest.quit().unwrap(), "");
}

/// Linux hands over its free pages, takes them back when it is told that the round is over, and
/// can use them.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn linux_hints_its_free_pages_and_has_them_back() {
    let daemon = Daemon::start(&["--statistics", "--free-page-hints"]);
    let guest = boot(&daemon, GuestConfig::default());
    let agent = guest.agent();
    agent.alloc(1, 256 * MIB, 1).unwrap();
    daemon.ctl(&["hinting", "start"]);
    until(|| {
        let status = daemon.ctl(&["status"]);
        match status.pointer("/hinting/state").and_then(Value::as_str) {
            Some("done") => Ok(()),
            _ => Err(status.to_string()),
        }
    });
    let hinted = daemon.number("counters", "/named_bytes/hinting");
    assert!(hinted >= 256 * MIB, "{hinted} bytes hinted");
    assert_eq!(agent.expect_intact(1).unwrap(), 256 * MIB);
    agent.alloc(2, 384 * MIB, 2).unwrap();
    assert_eq!(agent.expect_intact(2).unwrap(), 384 * MIB);
    assert_eq!(guest.quit().unwrap(), "");
}

/// A DIMM that is plugged in while the guest runs: its memory is used, reported and given back.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn memory_that_is_added_is_reported_and_given_back() {
    let daemon = Daemon::start(&[]);
    let config = GuestConfig {
        qemu_args: ["-m", "slots=2,maxmem=4G"].map(str::to_owned).into(),
        kernel_args: vec!["memhp_default_state=online_movable".to_owned()],
        ..GuestConfig::default()
    };
    let guest = boot(&daemon, config);
    added_memory_is_used_and_discarded(&guest, |guest| {
        guest.qmp().plug_memory("hot", 512 * MIB, None).unwrap();
    });
    assert_eq!(guest.quit().unwrap(), "");
}

/// Memory of a virtio-mem device: the guest plugs it, it is used, reported and discarded, and the guest unplugs
/// it.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn virtio_mem_plugged_is_reported_then_unplugged() {
    let daemon = Daemon::start(&[]);
    let config = GuestConfig {
        qemu_args: [
            "-m",
            "maxmem=4G",
            "-object",
            "memory-backend-memfd,id=more,size=512M,share=on",
            "-device",
            "virtio-mem-pci,id=plug,memdev=more,requested-size=0",
        ]
        .map(str::to_owned)
        .into(),
        kernel_args: vec!["memhp_default_state=online_movable".to_owned()],
        modules: vec!["kernel/drivers/virtio/virtio_mem".to_owned()],
        ..GuestConfig::default()
    };
    let guest = boot(&daemon, config);
    let agent = guest.agent();
    agent.load_module("virtio_mem", "").unwrap();
    let before = total(&guest);
    added_memory_is_used_and_discarded(&guest, |guest| {
        guest.qmp().request_memory("plug", 512 * MIB).unwrap();
    });
    agent.alloc(2, 256 * MIB, 2).unwrap();
    guest.qmp().request_memory("plug", 0).unwrap();
    until(|| match total(&guest) {
        now if now == before => Ok(()),
        now => Err(format!("{now} bytes, {before} before anything was plugged")),
    });
    assert_eq!(agent.expect_intact(2).unwrap(), 256 * MIB);
    assert_eq!(guest.quit().unwrap(), "");
}

/// Memory of huge pages, which the daemon gives back whole and only when it is allowed to.
#[test]
#[ignore = "needs a Linux guest and huge pages: cargo xtask test"]
fn huge_page_guest_memory_if_allowed_is_reclaimed() {
    const PAGE: u64 = 2 * MIB;
    let memory = 512 * MIB;
    let _alone = crate::huge_pages();
    let _pool = Pool::with_free(PAGE, memory).unwrap();
    for (args, allowed) in [(&["--hugetlb"][..], true), (&[], false)] {
        let daemon = Daemon::start(args);
        let config = GuestConfig {
            memory_bytes: memory,
            hugetlb_page_bytes: Some(PAGE),
            ..GuestConfig::default()
        };
        let guest = boot(&daemon, config);
        let agent = guest.agent();
        agent.alloc(1, 192 * MIB, 1).unwrap();
        let used = guest.resident_bytes().unwrap();
        agent.free(1).unwrap();
        if allowed {
            until(|| match guest.resident_bytes().unwrap() {
                now if now + 160 * MIB <= used => Ok(()),
                now => Err(format!("{now} bytes resident, {used} when they were used")),
            });
        } else {
            until(|| match daemon.number("counters", "/skipped_bytes/hugetlb") {
                bytes if bytes >= 160 * MIB => Ok(()),
                bytes => Err(format!("{bytes} bytes skipped")),
            });
            assert_eq!(daemon.number("counters", "/discarded_bytes"), 0);
        }
        agent.alloc(2, 192 * MIB, 2).unwrap();
        assert_eq!(agent.expect_intact(2).unwrap(), 192 * MIB);
        assert_eq!(guest.quit().unwrap(), "");
    }
}
