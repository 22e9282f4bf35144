// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl reclaim` and a Linux guest that does not report.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_agent::{Command as AgentCommand, Reply};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const VIRTIO_BLK: &str = "kernel/drivers/block/virtio_blk";
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// For a command of the guest that reads gigabytes.
const READING: Duration = Duration::from_secs(300);
const KEPT: u32 = 1;
const FILLED: u32 = 2;

struct Host {
    daemon: DaemonProcess,
    control: ControlSocket,
    guest: LinuxGuest,
}

impl Host {
    fn boot(memory_bytes: u64) -> Self {
        Self::boot_with(GuestConfig { memory_bytes, ..GuestConfig::default() })
    }

    fn boot_with(config: GuestConfig) -> Self {
        let args = ["--no-reporting", "--statistics"];
        let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        let toolbox = qemu::available().unwrap();
        let balloon = Balloon::VhostUser { socket: daemon.socket() };
        let config = GuestConfig { balloon, ..config };
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

    /// Reads the guest's disk: it stays in the page cache, which is not reported.
    fn read_through(&self, bytes: u64) -> u64 {
        let command = AgentCommand::ReadThrough { path: "/dev/vda".to_owned(), bytes };
        assert_eq!(self.guest.agent().call(command, READING).unwrap(), Reply::Done);
        let cached = self.guest.agent().meminfo().unwrap().bytes("Buffers");
        assert!(cached >= bytes / 10 * 9, "only {cached} bytes in the page cache");
        self.guest.resident_bytes().unwrap()
    }
}

/// What the guest has freed, and what it has read from a disk and no program uses.
#[test]
#[ignore = "needs a Linux guest and a full run: cargo xtask test --full"]
fn reclaim_freed_memory_and_page_cache_come_back() {
    const BYTES: u64 = 2048 * MIB;
    // Without blocks, so that reading it costs the host nothing.
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(BYTES).unwrap();
    let drive = format!("file={},format=raw,if=virtio,readonly=on", disk.path().display());
    let host = Host::boot_with(GuestConfig {
        memory_bytes: 2560 * MIB,
        modules: vec![VIRTIO_BLK.to_owned()],
        qemu_args: vec!["-drive".to_owned(), drive],
        ..GuestConfig::default()
    });
    let agent = host.guest.agent();
    agent.load_module("virtio_blk", "").unwrap();
    agent.alloc(KEPT, 64 * MIB, 1).unwrap();
    for what in ["freed", "page cache"] {
        let before = match what {
            "freed" => host.fill_and_free(BYTES),
            _ => host.read_through(BYTES),
        };
        assert!(before >= BYTES, "only {before} bytes resident");
        let (code, answer) = Host::ended(host.ctl(&["reclaim"]));
        // On a busy machine the guest may need longer than it has to confirm.
        let expected = if answer["let_go_confirmed"] == true { 0 } else { 5 };
        assert_eq!((code, &answer["ended_by"]), (Some(expected), &json!("reached")), "{answer}");
        let after = host.guest.resident_bytes().unwrap();
        let seconds = &answer["seconds"];
        println!("{what}: {} MiB before, {} MiB after, {seconds} s", before / MIB, after / MIB);
        // What is left is what the guest uses, what Linux touches when it lets go, and of page cache the
        // reserve.
        let squeezed = answer["squeezed_bytes"].as_u64().unwrap();
        assert!(squeezed >= BYTES / 10 * 8, "{answer}");
        assert!(after <= before - squeezed / 10 * 8, "{what}: {before} before, {after} after");
        assert_eq!(agent.expect_intact(KEPT).unwrap(), 64 * MIB);
        host.wait_for("let go", |status| status["actual_bytes"] == 0);
    }
    // What was given back is memory again.
    agent.alloc(FILLED, BYTES, 9).unwrap();
    assert_eq!(agent.expect_intact(FILLED).unwrap(), BYTES);
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
