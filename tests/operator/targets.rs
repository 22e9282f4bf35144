// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much a target takes from the guest, in both readings, and what it must leave.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);

struct Daemon {
    process: DaemonProcess,
    control: ControlSocket,
}

impl Daemon {
    fn start(args: &[&str]) -> Self {
        let process = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
        Self { control: ControlSocket::new(&process.control_socket(), PATIENCE), process }
    }

    /// A frontend, and the bytes of its guest's memory.
    fn attach(&self) -> (Attachment, u64) {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let guest =
            Attachment::connect(&self.process.socket(), &ram, AttachOptions::default()).unwrap();
        let memory = self.status()["memory"]["bytes"].as_u64().unwrap();
        (guest, memory)
    }

    fn status(&self) -> Value {
        self.control.get("/v1/status").unwrap()
    }

    /// The exit status of `ctl target`, and what it says.
    fn target(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(BINARY)
            .args(["ctl", "--control-socket"])
            .arg(self.process.control_socket())
            .arg("target")
            .args(args)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }
}

#[test]
fn target_either_reading_same_balloon() {
    let daemon = Daemon::start(&[]);
    let (mut guest, memory) = daemon.attach();
    let taken = MIB / 2;
    let answer = |body: Value| daemon.control.done("PUT", "/v1/target", &body.to_string()).unwrap();
    let leave = memory - taken;
    let expected = json!({"bytes": taken, "leave_bytes": leave, "memory_bytes": memory, "pending": false,
        "base_bytes": taken, "lease_left_seconds": null});
    assert_eq!(answer(json!({"bytes": taken})), expected);
    assert_eq!(answer(json!({"leave_bytes": memory - taken})), expected);
    for args in [["--take", "512K"], ["--leave", &(memory - taken).to_string()]] {
        let (code, said) = daemon.target(&args);
        assert_eq!(code, Some(0), "{said}");
        let whole = memory / MIB;
        assert!(said.contains("balloon 512 KiB, leaves "), "{said}");
        assert!(said.contains(&format!(" of {whole} MiB to the guest")), "{said}");
    }
    assert_eq!(u64::from(guest.get_config().unwrap().num_pages), taken / 4096);
}

/// A second of lease is waited for, so that the timer of the daemon ends it, and no client.
#[test]
fn target_lease_not_renewed_returns_to_base() {
    let daemon = Daemon::start(&[]);
    let (mut guest, _) = daemon.attach();
    let mut taken = || u64::from(guest.get_config().unwrap().num_pages) * 4096;
    assert_eq!(daemon.target(&["64K"]).0, Some(0));
    let (code, said) = daemon.target(&["--take", "1M", "--lease", "60s"]);
    assert!(code == Some(0) && said.contains("; for 60 s, then 64 KiB"), "{said}");
    let status = daemon.status();
    assert_eq!(
        (&status["target_bytes"], &status["base_target_bytes"]),
        (&json!(MIB), &json!(65536))
    );
    assert_eq!(taken(), MIB);
    // Renewed for a shorter time.
    let began = Instant::now();
    assert_eq!(daemon.target(&["512K", "--lease", "1s"]).0, Some(0));
    assert_eq!(taken(), MIB / 2);
    wait_until(SOON, LOOK_EVERY, || match &daemon.status()["lease_left_seconds"] {
        Value::Null => Ok(()),
        left => Err(format!("{left} s are left")),
    })
    .unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "over after {:?}", began.elapsed());
    assert_eq!((taken(), daemon.status()["target_bytes"].as_u64()), (65536, Some(65536)));
    let log = daemon.process.log();
    assert!(log.contains("lease of 524288 bytes is over, target 65536 bytes"), "{log}");
}

#[test]
fn target_lease_ended_or_replaced_by_operator() {
    let daemon = Daemon::start(&[]);
    let (mut guest, memory) = daemon.attach();
    let mut taken = || u64::from(guest.get_config().unwrap().num_pages) * 4096;
    assert_eq!(daemon.target(&["1M", "--lease", "5m"]).0, Some(0));
    assert_eq!(taken(), MIB);
    let (code, said) = daemon.target(&["--end-lease"]);
    assert!(code == Some(0) && said.starts_with("balloon 0 B"), "{said}");
    assert_eq!(taken(), 0);
    assert_eq!(
        daemon.target(&["--end-lease"]).0,
        Some(0),
        "there is none, which is what was asked for"
    );
    assert_eq!(daemon.target(&["1M", "--lease", "5m"]).0, Some(0));
    assert_eq!(daemon.target(&["64K"]).0, Some(0));
    let status = daemon.status();
    assert_eq!((taken(), &status["lease_left_seconds"]), (65536, &Value::Null));
    // A lease that is refused changes nothing.
    assert_eq!(daemon.target(&["1M", "--lease", "5m"]).0, Some(0));
    assert_eq!(daemon.target(&[&memory.to_string(), "--lease", "5m"]).0, Some(1));
    for seconds in ["0", "86401", "-1", "1.5"] {
        let body = format!(r#"{{"bytes": 0, "lease_seconds": {seconds}}}"#);
        let answer = daemon.control.ask("PUT", "/v1/target", &body).unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    for args in [&["1M", "--lease", "0s"][..], &["--lease", "5m"], &["1M", "--end-lease"]] {
        assert_eq!(daemon.target(args).0, Some(2), "{args:?}");
    }
    assert_eq!(taken(), MIB);
}

#[test]
fn target_lease_next_vm_sees_none() {
    let daemon = Daemon::start(&[]);
    let (guest, _) = daemon.attach();
    assert_eq!(daemon.target(&["1M", "--lease", "5m"]).0, Some(0));
    drop(guest);
    wait_until(SOON, LOOK_EVERY, || match daemon.status()["connected"] {
        Value::Bool(false) => Ok(()),
        _ => Err("still connected".to_owned()),
    })
    .unwrap();
    let (mut guest, _) = daemon.attach();
    assert_eq!(guest.get_config().unwrap().num_pages, 0);
    assert_eq!(daemon.status()["lease_left_seconds"], Value::Null);
}

#[test]
fn target_readings_mixed_refused() {
    let daemon = Daemon::start(&[]);
    let no_guest = daemon.control.ask("PUT", "/v1/target", r#"{"leave_bytes":4096}"#).unwrap();
    assert_eq!(no_guest.status, 409, "{no_guest:?}");
    let (_guest, memory) = daemon.attach();
    for body in ["{}", r#"{"bytes":0,"leave_bytes":0}"#, r#"{"force":true}"#] {
        let answer = daemon.control.ask("PUT", "/v1/target", body).unwrap();
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.error().unwrap().contains("one of the two sizes"), "{answer:?}");
    }
    let more = json!({"leave_bytes": memory + 4096}).to_string();
    let answer = daemon.control.ask("PUT", "/v1/target", &more).unwrap();
    assert!(answer.status == 409 && answer.error().unwrap().contains("cannot leave"));
    for args in [&["--take", "1M", "--leave", "1M"][..], &["1M", "--take", "1M"]] {
        assert_eq!(daemon.target(args).0, Some(2), "{args:?}");
    }
    assert_eq!(daemon.status()["target_bytes"], 0);
}

#[test]
fn target_past_reserve_refused_unless_forced() {
    let daemon = Daemon::start(&[]);
    let (mut guest, memory) = daemon.attach();
    let all = memory.to_string();
    let (code, said) = daemon.target(&[&all]);
    assert_eq!(code, Some(1), "{said}");
    let most = memory / 2;
    assert!(said.contains(&format!("take at most {most} bytes, or force it")), "{said}");
    assert_eq!(daemon.status()["target_bytes"], 0);
    assert_eq!(daemon.target(&[&most.to_string()]).0, Some(0));
    assert_eq!(daemon.target(&["--leave", "0"]).0, Some(1));
    assert_eq!(u64::from(guest.get_config().unwrap().num_pages), most / 4096);
    assert_eq!(daemon.target(&["--leave", "0", "--force"]).0, Some(0));
    assert_eq!(u64::from(guest.get_config().unwrap().num_pages), memory / 4096);
    assert_eq!(daemon.status()["target_refused"], Value::Null);
}

/// Set before there is a guest, the target meets one that is too small for it.
#[test]
fn target_kept_for_small_guest_reads_as_zero() {
    let daemon = Daemon::start(&["--target", "1T"]);
    let (mut guest, _) = daemon.attach();
    assert_eq!(guest.get_config().unwrap().num_pages, 0);
    assert!(daemon.process.wait_for_log("the guest keeps its memory", SOON).unwrap());
    let status = daemon.status();
    assert_eq!(status["target_bytes"], 1_u64 << 40);
    assert!(status["target_refused"].as_str().unwrap().contains("expected at least"), "{status}");
    // A smaller one holds.
    assert_eq!(daemon.target(&["--take", "64K"]).0, Some(0));
    assert_eq!(guest.get_config().unwrap().num_pages, 16);
}

/// Without the mend the guest is dead of it: its last page goes into the balloon.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn target_of_whole_linux_guest_leaves_it_alive() {
    const MEMORY: u64 = 512 * MIB;
    let daemon = Daemon::start(&["--target", "512M"]);
    let toolbox = qemu::available().unwrap();
    let balloon = Balloon::VhostUser { socket: daemon.process.socket() };
    let config = GuestConfig { balloon, memory_bytes: MEMORY, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    guest.load_balloon_driver("").unwrap();
    assert!(daemon.process.wait_for_log("its target is refused", PATIENCE).unwrap());
    let agent = guest.agent();
    agent.alloc(1, 64 * MIB, 1).unwrap();

    let (code, said) = daemon.target(&["512M"]);
    assert_eq!(code, Some(1), "{said}");
    // What is left, as QEMU's monitor would have it.
    let (code, said) = daemon.target(&["--leave", "384M"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said, "balloon 128 MiB, leaves 384 MiB of 512 MiB to the guest\n");
    let in_the_balloon = |bytes: u64| {
        wait_until(PATIENCE, LOOK_EVERY, || match daemon.status()["actual_bytes"].as_u64() {
            Some(actual) if actual == bytes => Ok(()),
            actual => Err(format!("{actual:?} bytes in the balloon")),
        })
        .unwrap();
    };
    in_the_balloon(128 * MIB);
    // A lease that no client renews.
    assert_eq!(daemon.target(&["--leave", "320M", "--lease", "1m"]).0, Some(0));
    in_the_balloon(192 * MIB);
    assert_eq!(daemon.target(&["--leave", "320M", "--lease", "1s"]).0, Some(0));
    in_the_balloon(128 * MIB);
    assert_eq!(agent.expect_intact(1).unwrap(), 64 * MIB);
    assert_eq!(guest.quit().unwrap(), "");
}
