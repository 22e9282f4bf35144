// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops a killed process at its exit, while it has its address space.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use anyhow::{Context, Result, bail};
use guest_agent::victim::{VictimPlan, VictimState};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::process;
use crate::lock::lock;

/// The tracer of one process. Only the thread that attached may trace, so it has one of its own.
pub(super) struct Tracer {
    pid: Pid,
    shared: Arc<Shared>,
}

struct Shared {
    /// Whether the process may end, and how it stands.
    state: Mutex<(bool, VictimState)>,
    changed: Condvar,
}

impl Tracer {
    /// Starts the process and waits until its memory is in use.
    pub(super) fn start(plan: &VictimPlan) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new((false, VictimState::Running)),
            changed: Condvar::new(),
        });
        let (sender, started) = channel();
        let (plan, of_thread) = (plan.clone(), Arc::clone(&shared));
        let body = move || of_thread.trace(&plan, &sender);
        thread::Builder::new()
            .name("tracer".to_owned())
            .spawn(body)
            .context("starting the thread that traces")?;
        let pid = started.recv().context("the thread that traces is gone: see the console")??;
        Ok(Self { pid, shared })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub(super) fn state(&self) -> VictimState {
        lock(&self.shared.state).1.clone()
    }

    pub(super) fn is_running(&self) -> bool {
        !self.state().has_ended()
    }

    /// Has the process end, and waits for its end.
    pub(super) fn release(&self) -> Result<()> {
        let mut state = lock(&self.shared.state);
        state.0 = true;
        self.shared.changed.notify_all();
        if state.1 == VictimState::Running {
            // It may have ended since.
            match kill(self.pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).context("ending the victim"),
            }
        }
        while !state.1.has_ended() {
            state =
                self.shared.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Shared {
    fn set(&self, state: VictimState) {
        lock(&self.state).1 = state;
        self.changed.notify_all();
    }

    fn trace(&self, plan: &VictimPlan, started: &Sender<Result<Pid>>) {
        let child = match started_and_traced(plan) {
            Ok(child) => child,
            Err(error) => {
                // The task that waits takes it.
                let _ = started.send(Err(error));
                return;
            }
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        let _ = started.send(Ok(pid));
        let how = self.until_end(pid);
        self.set(VictimState::Ended(how.unwrap_or_else(|error| format!("unknown: {error:#}"))));
    }

    /// Returns how it ended.
    fn until_end(&self, pid: Pid) -> Result<String> {
        loop {
            match waitpid(pid, None).context("waiting for the victim")? {
                WaitStatus::Exited(_, code) => return Ok(format!("status {code}")),
                WaitStatus::Signaled(_, signal, _) => return Ok(format!("{signal}")),
                WaitStatus::PtraceEvent(..) => {
                    let mut state = lock(&self.state);
                    state.1 = VictimState::Stopped;
                    self.changed.notify_all();
                    while !state.0 {
                        state = self
                            .changed
                            .wait(state)
                            .unwrap_or_else(std::sync::PoisonError::into_inner);
                    }
                    drop(state);
                    ptrace::cont(pid, None).context("letting the victim end")?;
                }
                WaitStatus::Stopped(_, signal) => {
                    ptrace::cont(pid, signal).context("passing a signal on")?;
                }
                _ => {}
            }
        }
    }
}

/// Starts a process, waits until its memory is in use, and attaches to it.
fn started_and_traced(plan: &VictimPlan) -> Result<Child> {
    let mut child = process::start(plan)?;
    let mut line = String::new();
    let output = child.stdout.take().context("the victim has no output")?;
    BufReader::new(output).read_line(&mut line).context("listening to the victim")?;
    if line.trim() != process::READY {
        let status = child.wait().context("waiting for the victim")?;
        bail!("the victim was not ready (got {line:?}, {status}): see the serial console");
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).context("its process id")?);
    ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT).context("tracing the victim")?;
    Ok(child)
}
