// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl reclaim` and a Linux guest that does not report.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const KEPT: u32 = 1;
const FILLED: u32 = 2;

struct Host {
    daemon: DaemonProcess,
    control: ControlSocket,
    guest: LinuxGuest,
}

impl Host {
    fn boot(memory_bytes: u64) -> Self {
        let args = ["--no-reporting", "--statistics"];
        let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        let toolbox = qemu::available().unwrap();
        let balloon = Balloon::VhostUser { socket: daemon.socket() };
        let config = GuestConfig { balloon, memory_bytes, ..GuestConfig::default() };
        let guest = LinuxGuest::boot(&toolbox, config).unwrap();
        guest.load_balloon_driver("").unwrap();
        Self { daemon, control, guest }
    }

    fn socket(&self) -> PathBuf {
        self.daemon.control_socket()
    }

    fn ctl(&self, args: &[&str]) -> Child {
        let mut command = Command::new(BINARY);
        command.args(["ctl", "--json", "--control-socket"]).arg(self.socket()).args(args);
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    /// The exit status, and the answer.
    fn ended(client: Child) -> (Option<i32>, Value) {
        let output = client.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("{answer}");
        (output.status.code(), answer)
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        wait_until(PATIENCE, LOOK_EVERY, || {
            let status = self.control.get("/v1/status").map_err(|error| error.to_string())?;
            if holds(&status) { Ok(()) } else { Err(format!("not {what}: {status}")) }
        })
        .unwrap();
    }

    /// Fills memory and frees it again: it stays with the guest.
    fn fill_and_free(&self, bytes: u64) -> u64 {
        let agent = self.guest.agent();
        agent.alloc(FILLED, bytes, 2).unwrap();
        assert_eq!(agent.expect_intact(FILLED).unwrap(), bytes);
        agent.free(FILLED).unwrap();
        self.guest.resident_bytes().unwrap()
    }
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn reclaim_freed_memory_comes_back_and_is_usable() {
    const FREED: u64 = 2048 * MIB;
    let host = Host::boot(2560 * MIB);
    let agent = host.guest.agent();
    agent.alloc(KEPT, 64 * MIB, 1).unwrap();
    for _ in 0..2 {
        let before = host.fill_and_free(FREED);
        assert!(before >= FREED, "only {before} bytes resident");
        let (code, answer) = Host::ended(host.ctl(&["reclaim"]));
        assert_eq!((code, &answer["ended_by"]), (Some(0), &json!("reached")), "{answer}");
        let after = host.guest.resident_bytes().unwrap();
        println!("resident: {} MiB before, {} MiB after", before / MIB, after / MIB);
        assert_eq!(answer["let_go_confirmed"], true);
        // The reserve, what the guest uses, and what Linux touches when it lets go.
        assert!(after <= before - FREED / 10 * 8, "{before} before, {after} after");
        assert_eq!(agent.expect_intact(KEPT).unwrap(), 64 * MIB);
        host.wait_for("let go", |status| status["actual_bytes"] == 0);
    }
    // What was given back is memory again.
    agent.alloc(FILLED, FREED, 9).unwrap();
    assert_eq!(agent.expect_intact(FILLED).unwrap(), FREED);
    host.guest.quit().unwrap();
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn reclaim_client_killed_linux_is_let_go() {
    let host = Host::boot(1024 * MIB);
    host.fill_and_free(640 * MIB);
    let mut client = host.ctl(&["reclaim", "--keep", "64M"]);
    host.wait_for("squeezed", |status| status["actual_bytes"].as_u64() > Some(32 * MIB));
    client.kill().unwrap();
    client.wait().unwrap();
    let killed = Instant::now();
    host.wait_for("let go", |status| status["reclaim_target_bytes"].is_null());
    println!("let go {:?} after SIGKILL", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(1));
    host.wait_for("deflated", |status| status["actual_bytes"] == 0);
    println!("deflated {:?} after SIGKILL", killed.elapsed());
    host.fill_and_free(640 * MIB);
    host.guest.quit().unwrap();
}

/// A process takes memory while the guest is squeezed.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn reclaim_guest_under_pressure_is_let_go() {
    let host = Host::boot(1024 * MIB);
    host.fill_and_free(640 * MIB);
    let client = host.ctl(&["reclaim", "--keep", "256M"]);
    host.wait_for("squeezed", |status| status["actual_bytes"].as_u64() > Some(32 * MIB));
    let began = Instant::now();
    let end = std::thread::scope(|scope| {
        let program = scope.spawn(|| host.guest.agent().use_memory(700 * MIB).unwrap());
        host.wait_for("let go", |status| status["reclaim_target_bytes"].is_null());
        println!("let go {:?} after the program began", began.elapsed());
        // It is asked for no more: this is the sample that showed it.
        let statistics = host.control.get("/v1/statistics").unwrap();
        let age = statistics["sample"]["age_seconds"].as_f64().unwrap();
        println!("seen let go {age:.3} s after the sample");
        assert!(age < 1.0, "{statistics}");
        program.join().unwrap()
    });
    println!("the program's end: {end:?}");
    let (code, answer) = Host::ended(client);
    assert_eq!((code, &answer["ended_by"]), (Some(5), &json!("pressure")), "{answer}");
    host.wait_for("deflated", |status| status["actual_bytes"] == 0);
    host.fill_and_free(640 * MIB);
    host.guest.quit().unwrap();
}
