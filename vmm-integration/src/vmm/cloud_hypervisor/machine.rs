// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with a guest in it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::api::Api;
use super::arguments;
use super::place::Place;
use super::serial::terminal;
use super::version::Version;
use crate::bare_guest::{Console, Line, image};
use crate::measure::host::wait_until;
use crate::vmm::bare::{Absent, BareMachine, BareSpec, SavedGuest};
use crate::vmm::process::Process;

/// How long the VMM may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// It says nothing when it is ready for a migration.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Logs the system calls that a filter forbids, and makes them. By default the filter of the thread `migration-worker`
/// of version 53 kills a VMM that is linked with glibc: it forbids `newfstatat`, by which glibc examines a file.
const SECCOMP: [&str; 2] = ["--seccomp", "log"];
/// Words of the VMM, and what is missing then.
const LACKS: &[(&str, &str)] = &[(
    "GetNestedState",
    "KVM here has no nested state, without which it saves and moves no guest",
)];

/// A guest. Dropping it kills the VMM and waits until it is gone.
pub(super) struct Machine {
    // First, so that it is dropped first.
    process: Process,
    console: Console,
    api: Api,
    /// Messages and sockets of this VMM.
    files: TempDir,
    place: Arc<Place>,
    binary: PathBuf,
    memory_bytes: u64,
}

impl Machine {
    /// Boots a guest.
    ///
    /// # Errors
    /// When its image cannot be built, or the VMM does not start.
    pub(super) fn boot(binary: &Path, version: &Version, spec: &BareSpec) -> Result<Self> {
        let place = Arc::new(Place::new(&spec.socket)?);
        let arguments = arguments::boot(version, spec, &image()?, &place.socket());
        Self::start(binary, place, &arguments, spec.memory_bytes)
    }

    fn start(
        binary: &Path,
        place: Arc<Place>,
        arguments: &[String],
        memory_bytes: u64,
    ) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("ch-").tempdir().context("a temp folder")?;
        let (api, listener) = Api::new(&files.path().join("api.sock"), PATIENCE)?;
        let (console, theirs) = terminal()?;
        let stderr = File::create(stderr_in(&files)).context("creating a file for messages")?;
        let mut command = Command::new(binary);
        command
            .args(SECCOMP)
            .arg("--api-socket")
            .arg(format!("fd={}", listener.as_raw_fd()))
            .args(arguments);
        let stdin = theirs.try_clone().context("copying the terminal")?;
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(theirs)).stderr(stderr);
        let process = Process::start(command, vec![listener])?;
        let binary = binary.to_owned();
        Ok(Self { process, console, api, files, place, binary, memory_bytes })
    }

    fn messages(&self) -> String {
        messages_in(&self.files)
    }

    /// Puts what the VMM printed behind an error.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        explained(&format!("{error:#}; its messages: {:?}", self.messages()))
    }

    fn put(&self, action: &str) -> Result<()> {
        self.api.put(action, None).map_err(|error| self.explain(error))
    }

    /// Waits until the VMM has ended by itself.
    fn wait_for_end(&self) -> Result<()> {
        match self.process.wait(PATIENCE) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("it ended with {status}: {}", self.messages()),
            None => bail!("it still runs after {PATIENCE:?}: {}", self.messages()),
        }
    }
}

impl BareMachine for Machine {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn vmm_pid(&self) -> u32 {
        self.process.pid()
    }

    fn pause(&self) -> Result<()> {
        self.put("vm.pause")
    }

    fn resume(&self) -> Result<()> {
        self.put("vm.resume")
    }

    fn reboot(&self) -> Result<()> {
        self.put("vm.reboot")
    }

    fn plug_memory(&self, _: u64, bytes: u64) -> Result<()> {
        let size = json!({ "desired_ram": self.memory_bytes + bytes });
        self.api.put("vm.resize", Some(&size)).map_err(|error| self.explain(error))
    }

    fn save(self: Box<Self>) -> Result<Box<dyn SavedGuest>> {
        self.pause()?;
        let folder = self.place.saved()?;
        let url = json!({ "destination_url": url(&folder) });
        self.api.put("vm.snapshot", Some(&url)).map_err(|error| self.explain(error))?;
        self.put("vmm.shutdown")?;
        self.wait_for_end()?;
        let Self { place, binary, memory_bytes, .. } = *self;
        Ok(Box::new(Saved { folder, place, binary, memory_bytes }))
    }

    fn migrate(self: Box<Self>, socket: &Path) -> Result<Box<dyn BareMachine>> {
        self.place.lead_to(socket)?;
        let next = Self::start(&self.binary, Arc::clone(&self.place), &[], self.memory_bytes)?;
        let meeting = next.files.path().join("migration.sock");
        let url = format!("unix:{}", meeting.display());
        let receiver = next.api.clone();
        let offer = json!({ "receiver_url": url });
        // Answered when all has been received.
        let received = thread::spawn(move || receiver.put("vm.receive-migration", Some(&offer)));
        wait_until(PATIENCE, LOOK_EVERY, || match meeting.exists() || received.is_finished() {
            true => Ok(()),
            false => Err(format!("nothing at {}", meeting.display())),
        })?;
        let order = json!({ "destination_url": url, "local": true });
        let sent = self.api.put("vm.send-migration", Some(&order));
        if let Err(error) = sent {
            // Its end also ends the wait for its answer.
            drop(next);
            let _ = received.join();
            return Err(self.explain(error));
        }
        let received = received.join().map_err(|_| anyhow!("receiving panicked"))?;
        if let Err(error) = received {
            let sender = self.messages();
            return Err(explained(&format!("{:#}; the sender: {sender:?}", next.explain(error))));
        }
        self.wait_for_end()?;
        Ok(Box::new(next))
    }

    fn finish(self: Box<Self>, patience: Duration) -> Result<Vec<Line>> {
        let Self { process, console, files, .. } = *self;
        let lines = console.wait_done(patience);
        let lines = lines.with_context(|| format!("its messages: {:?}", messages_in(&files)))?;
        let Some(status) = process.wait(PATIENCE) else {
            bail!("it did not end after the guest had powered off");
        };
        ensure!(status.success(), "it ended with {status}: {}", messages_in(&files));
        Ok(lines)
    }
}

/// A guest that was saved.
struct Saved {
    folder: PathBuf,
    place: Arc<Place>,
    binary: PathBuf,
    memory_bytes: u64,
}

impl SavedGuest for Saved {
    fn restore(&self, socket: &Path) -> Result<Box<dyn BareMachine>> {
        self.place.lead_to(socket)?;
        let place = Arc::clone(&self.place);
        let guest = Machine::start(&self.binary, place, &[], self.memory_bytes)?;
        let source = json!({ "source_url": url(&self.folder) });
        guest.api.put("vm.restore", Some(&source)).map_err(|error| guest.explain(error))?;
        guest.resume()?;
        Ok(Box::new(guest))
    }
}

/// An error of the VMM: one of the kind [`Absent`] where this machine cannot do what it takes.
fn explained(error: &str) -> anyhow::Error {
    match LACKS.iter().find(|(words, _)| error.contains(words)) {
        Some((words, why)) => anyhow!(Absent(format!("{why} ({words})"))),
        None => anyhow!("{error}"),
    }
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn stderr_in(files: &TempDir) -> PathBuf {
    files.path().join("stderr.log")
}

fn messages_in(files: &TempDir) -> String {
    match fs::read(stderr_in(files)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(they cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kvm_lacks_is_absent_and_no_failure() {
        let why = |words| explained(words).downcast_ref::<Absent>().map(ToString::to_string);
        let nested = why("vm.snapshot: Could not get vCPU state GetNestedState(Invalid argument)");
        assert!(nested.unwrap().starts_with("KVM here has no nested state"));
        assert_eq!(why("vm.snapshot: Error from the backend"), None);
    }
}
