// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM whose daemon is a unit of a real systemd, which kills, restarts and upgrades it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde_json::Value;
use tempfile::TempDir;
use vmm_integration::control::ControlSocket;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
/// Of one request: it is asked again.
const PATIENCE: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_millis(20);
const UNIT: &str = "balloon.service";
const PACKAGED: &str = include_str!("../../packaging/systemd/vhost-device-balloon@.service");
/// What a manager of a user can do of that unit: what a hand-over needs.
const KEYS: [&str; 5] =
    ["Type=", "FileDescriptorStoreMax=", "Restart", "SuccessExitStatus=", "Timeout"];
/// systemd older than 254 does not say that it has a store.
const OWN: &str = "Environment=FDSTORE=16\nStandardError=inherit\n";

/// A systemd of its own, with one unit.
struct Systemd {
    manager: Child,
    dir: TempDir,
}

impl Systemd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("run");
        fs::create_dir(&runtime).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(dir.path().join("basic.target"), "[Unit]\n").unwrap();
        let path = dir.path().display();
        let keys = |line: &&str| KEYS.iter().any(|key| line.starts_with(key));
        let packaged = PACKAGED.lines().filter(keys).collect::<Vec<_>>().join("\n");
        let start = format!(
            "[Service]\n{OWN}{packaged}\nExecStart={} --socket-path {path}/vm.sock --control-socket {path}/vm.ctl\n",
            env!("CARGO_BIN_EXE_vhost-device-balloon")
        );
        fs::write(dir.path().join(UNIT), start).unwrap();
        // It looks for this folder, by which a system that systemd has booted is known.
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && \
                      exec /lib/systemd/systemd --user --unit=basic.target --log-target=console";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).stdin(Stdio::null());
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        environment(&mut command, dir.path());
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let manager = command.spawn().unwrap();
        let systemd = Self { manager, dir };
        wait_until(SOON, EVERY, || {
            let started = systemd.ctl(&["start", UNIT]);
            if started.status.success() { Ok(()) } else { Err(format!("{started:?}")) }
        })
        .unwrap();
        systemd
    }

    fn ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(args);
        environment(&mut command, self.dir.path());
        command.output().unwrap()
    }

    /// What it and the daemons have logged.
    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn expect(&self, args: &[&str]) {
        let output = self.ctl(args);
        assert!(output.status.success(), "{args:?}: {output:?}\n{}", self.log());
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.ctl(&["stop", UNIT]);
        let _ = self.manager.kill();
        let _ = self.manager.wait();
    }
}

fn environment(command: &mut Command, dir: &Path) {
    command.env("XDG_RUNTIME_DIR", dir.join("run")).env("SYSTEMD_UNIT_PATH", dir);
}

#[test]
#[ignore = "needs root and a systemd of its own: cargo xtask test"]
fn unit_killed_restarted_or_upgraded_vm_goes_on() {
    let systemd = Systemd::start();
    let control = ControlSocket::new(&systemd.dir.path().join("vm.ctl"), PATIENCE);
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let socket = systemd.dir.path().join("vm.sock");
    let mut guest = Attachment::connect(&socket, &ram, AttachOptions::default()).unwrap();
    let mut given_back = |at| guest.given_back(GpaRange::new(Gpa(at), MIB).unwrap()).unwrap();
    assert!(given_back(4 * MIB));
    control.done("PUT", "/v1/target", &format!("{{\"bytes\":{}}}", 8 * MIB)).unwrap();
    let status = || control.get("/v1/status").unwrap();
    let pid = |status: &Value| {
        Pid::from_raw(status["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    };
    let ends: [&dyn Fn(); 3] = [
        &|| kill_process(pid(&status()), Signal::KILL).unwrap(),
        &|| systemd.expect(&["restart", UNIT]),
        &|| drop(control.done("POST", "/v1/upgrade", "").unwrap()),
    ];
    for (end, at) in ends.iter().zip(5..) {
        let before = pid(&status());
        end();
        wait_until(SOON, EVERY, || {
            let status = control.get("/v1/status");
            let status = status.map_err(|error| format!("{error:#}\n{}", systemd.log()))?;
            let goes_on = pid(&status) != before && status["connected"] == true;
            if goes_on { Ok(()) } else { Err(status.to_string()) }
        })
        .unwrap();
        assert!(given_back(at * MIB));
        assert_eq!(control.get("/v1/status").unwrap()["target_bytes"], 8 * MIB);
    }
}
