// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host with guests that use and free memory, each with its daemon, and a hostd.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

/// The directory of control sockets, below the scene's.
pub(super) const SOCKETS: &str = "vms";
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
const HAPPENS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const MIB: u64 = 1 << 20;
/// Names of the guests, their memory in MiB, what each uses at a time in MiB, and seconds between.
const GUESTS: [(&str, u64, u64, u64); 4] = [
    ("build-1", 768, 380, 9),
    ("database", 640, 160, 21),
    ("web-1", 512, 200, 6),
    ("web-2", 512, 150, 7),
];

struct Guest {
    // First, so that it is dropped first.
    linux: LinuxGuest,
    _daemon: DaemonProcess,
}

/// The host.
pub(super) struct Scene {
    guests: Vec<Guest>,
    hostd: Child,
    /// Holds the directory of the control sockets.
    pub(super) dir: TempDir,
    /// Where hostd has the metrics of all.
    pub(super) metrics: SocketAddr,
    /// The host's program.
    pub(super) program: PathBuf,
}

impl Scene {
    /// Boots the guests, with the programs in `programs`.
    ///
    /// # Errors
    /// If one does not start.
    pub(super) fn start(toolbox: &Toolbox, programs: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let sockets = dir.path().join(SOCKETS);
        fs::create_dir(&sockets)?;
        let mut guests = Vec::new();
        for (name, mebibytes, ..) in GUESTS {
            eprintln!("booting {name}");
            let binary = programs.join("vhost-device-balloon");
            let daemon = DaemonProcess::spawn_controlled(
                &binary,
                ["--statistics", "--deflate-on-oom", "--name", name],
            )?;
            symlink(daemon.control_socket(), sockets.join(format!("{name}.ctl")))?;
            let balloon = Balloon::VhostUser { socket: daemon.socket() };
            let memory_bytes = mebibytes * MIB;
            let config = GuestConfig { memory_bytes, balloon, cpus: 1, ..GuestConfig::default() };
            let linux = LinuxGuest::boot(toolbox, config)?;
            linux.load_balloon_driver("")?;
            guests.push(Guest { linux, _daemon: daemon });
        }
        let program = programs.join("vhost-device-balloon-host");
        let (hostd, metrics) = start_hostd(&program, &sockets)?;
        Ok(Self { guests, hostd, dir, metrics, program })
    }

    /// Waits until a daemon's answer at `path` is as `wanted` says.
    ///
    /// # Errors
    /// If none is within a minute.
    pub(super) fn wait_for_any(&self, path: &str, wanted: fn(&Value) -> bool) -> Result<()> {
        let sockets = GUESTS.map(|(name, ..)| self.socket(name));
        let look = || {
            let answers = sockets
                .iter()
                .filter_map(|socket| ControlSocket::new(socket, ANSWERS_WITHIN).get(path).ok());
            let answers: Vec<_> = answers.collect();
            if answers.iter().any(wanted) { Ok(()) } else { Err(format!("{path}: {answers:?}")) }
        };
        wait_until(HAPPENS_WITHIN, LOOK_EVERY, look)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(SOCKETS).join(format!("{name}.ctl"))
    }

    /// Has the guests use and free memory for this long, and does something meanwhile.
    ///
    /// # Errors
    /// If a guest fails, or what is done.
    pub(super) fn play<T>(&self, time: Duration, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let failures = Mutex::new(Vec::new());
        let end = Instant::now() + time;
        let acted = thread::scope(|scope| {
            let mut stops = Vec::new();
            for (guest, (_, _, mebibytes, seconds)) in self.guests.iter().zip(GUESTS) {
                let (stop, stopped) = channel::<()>();
                stops.push(stop);
                let failures = &failures;
                scope.spawn(move || {
                    let used = uses(guest, mebibytes * MIB, Duration::from_secs(seconds), &stopped);
                    if let (Err(error), Ok(mut failures)) = (used, failures.lock()) {
                        failures.push(format!("{error:#}"));
                    }
                });
            }
            let acted = act();
            thread::sleep(end.saturating_duration_since(Instant::now()));
            drop(stops);
            acted
        });
        let failures = failures.into_inner().unwrap_or_default();
        if !failures.is_empty() {
            bail!("a guest failed: {}", failures.join("; "));
        }
        acted
    }
}

/// Allocates, holds and frees until it is stopped. What is held must be intact.
fn uses(guest: &Guest, bytes: u64, hold: Duration, stopped: &Receiver<()>) -> Result<()> {
    let agent = guest.linux.agent();
    for generation in 1.. {
        agent.alloc(1, bytes, generation)?;
        let over = stopped.recv_timeout(hold) == Err(RecvTimeoutError::Disconnected);
        agent.expect_intact(1)?;
        agent.free(1)?;
        if over || stopped.recv_timeout(hold) == Err(RecvTimeoutError::Disconnected) {
            break;
        }
    }
    Ok(())
}

/// Starts hostd with a policy that wants more than the host has available now, so that it has to act.
fn start_hostd(program: &Path, dir: &Path) -> Result<(Child, SocketAddr)> {
    // Also if other programs of the host give some back meanwhile.
    let reserve = available_bytes()? + 1024 * MIB;
    let policy = dir.join("policy.toml");
    let rules = format!(
        "[host]\nreserve = {reserve}\nband = \"64M\"\nperiod = \"2s\"\n\n[guest]\nreserve = \"64M\"\n"
    );
    fs::write(&policy, rules)?;
    let mut command = Command::new(program);
    command.arg("hostd").arg("--sockets").arg(dir).arg("--socket").arg(dir.join("hostd.sock"));
    command.arg("--policy").arg(&policy).args(["--metrics-address", "127.0.0.1:0"]);
    let mut hostd = command.stderr(Stdio::piped()).spawn().context("cannot start hostd")?;
    let errors = hostd.stderr.take().context("hostd has no standard error")?;
    let mut lines = BufReader::new(errors).lines();
    for line in lines.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("metrics at http://") {
            let address = rest.trim_end_matches("/metrics").parse()?;
            // It must not block on a pipe that nothing reads.
            thread::spawn(move || lines.for_each(drop));
            return Ok((hostd, address));
        }
    }
    let status = hostd.wait()?;
    bail!("hostd has ended: {status}")
}

/// What the host has available.
fn available_bytes() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes: u64 = line.unwrap_or_default().trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

impl Drop for Scene {
    fn drop(&mut self) {
        // It lets its leases go.
        let _ = kill_process(Pid::from_child(&self.hostd), Signal::TERM);
        let _ = self.hostd.wait();
    }
}
