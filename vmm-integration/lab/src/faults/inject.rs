// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults of the daemon as it is, from outside: its system calls through strace, its limits.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::plan::{Fault, FaultKind};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::fetch::{Sysroot, Tool, guest_dir};
use vmm_integration::measure::host::wait_until;

/// How long strace may take to attach, and a system call to be reached.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// In so many looks a delayed call is found where it was.
const LOOKS: u32 = 10;

/// strace as it was fetched with the guest.
///
/// # Errors
/// Where nothing was fetched.
pub fn strace() -> Result<Tool> {
    let sysroot = Sysroot::existing(&guest_dir());
    let sysroot = sysroot.context("strace comes with the Linux guest, which is not set up here")?;
    Ok(sysroot.tool("strace"))
}

/// A daemon for `fault`. In place of a call that fails strace enters none, number -1, at
/// which the daemon's sandbox would end it.
///
/// # Errors
/// Where it does not start.
pub fn start(fault: &Fault, binary: &Path) -> Result<DaemonProcess> {
    let args = match fault.kind {
        FaultKind::DiscardFails => vec!["--sandbox=none".into()],
        _ => Vec::new(),
    };
    DaemonProcess::spawn(binary, &DaemonOptions { args, ..DaemonOptions::default() })
}

/// strace that tampers with a process's discards for as long as this lives.
pub struct Tampering {
    strace: Child,
}

impl Tampering {
    /// Attaches to process `pid` and lets `fallocate` fail or take long, as the fault has it. What
    /// the plan counts in chains is counted in calls here.
    ///
    /// # Errors
    /// Where there is no strace, or it may not attach.
    pub fn start(pid: u32, fault: &Fault) -> Result<Self> {
        let what = match (&fault.errno, fault.kind) {
            (Some(errno), FaultKind::DiscardFails) => format!("error={errno}"),
            _ => format!("delay_enter={}", fault.millis().saturating_mul(1000)),
        };
        let first = fault.after + 1;
        let when = match fault.times {
            0 => format!("{first}+"),
            times => format!("{first}..{}", fault.after + times),
        };
        let inject = format!("inject=fallocate:{what}:when={when}");
        Self::attach(pid, &["trace=fallocate", &inject], Path::new("/dev/null"))
    }

    /// Attaches to process `pid` with these expressions (`-e`), and writes what it sees into `trace`.
    ///
    /// # Errors
    /// As [`Tampering::start`].
    pub fn attach(pid: u32, expressions: &[&str], trace: &Path) -> Result<Self> {
        let mut strace = strace()?.command();
        strace.arg("-f").arg("-o").arg(trace);
        expressions.iter().for_each(|expression| {
            strace.args(["-e", expression]);
        });
        strace.args(["-p", &pid.to_string()]);
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut strace = strace.spawn().context("starting strace")?;
        let said = strace.stderr.take().context("strace's messages")?;
        let mut tampering = Self { strace };
        let mut first = String::new();
        let mut said = BufReader::new(said);
        said.read_line(&mut first).context("reading what strace says")?;
        // It names each thread that is started later, and would end where nothing reads that.
        thread::spawn(move || io::copy(&mut said, &mut io::sink()));
        ensure!(first.contains("attached"), "strace did not attach to {pid}: {first}");
        // All threads that there are have to be attached; each has its tracer in its status.
        wait_until(PATIENCE, LOOK_EVERY, || match untraced(pid) {
            Ok(0) => Ok(()),
            Ok(left) => Err(format!("{left} threads are not attached to")),
            Err(error) => Err(format!("{error:#}")),
        })?;
        if let Some(status) = tampering.strace.try_wait()? {
            bail!("strace ended with {status}");
        }
        Ok(tampering)
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        // It detaches when it is asked to end, and its tracee goes on; killed it does the same.
        if let Some(pid) = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.strace.wait();
    }
}

fn statuses(pid: u32) -> Result<Vec<String>> {
    let tasks = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&tasks).with_context(|| format!("listing {tasks}"))?;
    // A thread may end meanwhile.
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("status")).ok();
    Ok(entries.flatten().filter_map(read).collect())
}

fn untraced(pid: u32) -> Result<usize> {
    let untraced = |status: &&String| status.lines().any(|line| line == "TracerPid:\t0");
    Ok(statuses(pid)?.iter().filter(untraced).count())
}

/// Waits until a thread of the process is held up in a system call that is delayed.
///
/// Any traced call stops for a moment; one that is delayed is found stopped in look after look.
///
/// # Errors
/// Where none is in time.
pub fn wait_until_held_up(pid: u32) -> Result<()> {
    let mut looks = 0;
    wait_until(PATIENCE, LOOK_EVERY, || {
        let statuses = statuses(pid).map_err(|error| format!("{error:#}"))?;
        let stopped = statuses.iter().any(|status| status.contains("(tracing stop)"));
        looks = if stopped { looks + 1 } else { 0 };
        if looks == LOOKS { Ok(()) } else { Err("no discard is under way".to_owned()) }
    })
}

/// Keeps a process from opening descriptors for as long as this lives.
pub struct NoDescriptors {
    pid: Pid,
    before: Rlimit,
}

impl NoDescriptors {
    /// Leaves process `pid` the descriptors that it has.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
        // Ours is what our children have, and it need not be possible to raise it.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(0), maximum };
        let before = prlimit(Some(pid), Resource::Nofile, limit).context("prlimit")?;
        Ok(Self { pid, before })
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        // It fails only where the process is gone.
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}
