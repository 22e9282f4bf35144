// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Debian 13 with systemd, libvirt and QEMU: a machine to install packages on, without one.
//!
//! The installation is made once, and booted as a container: systemd is its first process. What a
//! machine changes lies in a folder of its own, so that the next one begins with the same
//! installation, and a test can ask what is left of a package that was removed. Root only.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::fetch::{SetupEvent, Sysroot, guest_dir};
use crate::measure::host::wait_until;

const BOOT: &str = include_str!("boot.sh");
/// Until systemd says that all has started.
const BOOTS_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A booted machine. Everything in it ends when it is dropped.
#[derive(Debug)]
pub struct DebianMachine {
    outer: Child,
    init: u32,
    _group: Group,
    /// What changes, and the control groups.
    _mounts: [Mount; 2],
    dir: TempDir,
}

/// A mount, for as long as this lives.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, at: PathBuf) -> Result<Self> {
        fs::create_dir(&at).with_context(|| at.display().to_string())?;
        mount(kind, &at, kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {kind}"))?;
        Ok(Self(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A control group, which is removed with those below it once their processes are gone.
#[derive(Debug)]
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let gone = wait_until(BOOTS_WITHIN, LOOK_EVERY, || {
            remove_groups(&self.0).map_err(|error| error.to_string())
        });
        if let Err(error) = gone {
            eprintln!("{}: {error:#}", self.0.display());
        }
    }
}

fn remove_groups(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Makes the installation, unless it exists; returns its folder.
///
/// # Errors
/// When the packages cannot be had, or the caller is not root.
pub fn installation(events: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf> {
    ensure!(rustix::process::geteuid().is_root(), "a Debian machine needs root");
    let folder = Sysroot::ensure_debian(&guest_dir(), events)?;
    fs::canonicalize(&folder).with_context(|| folder.display().to_string())
}

impl DebianMachine {
    /// Boots a machine, and waits until all of its units have started.
    ///
    /// # Errors
    /// As [`installation`]; when namespaces, mounts or control groups are denied; when a unit fails.
    pub fn boot() -> Result<Self> {
        let base = installation(&mut |_| {})?;
        let dir = tempfile::Builder::new().prefix("debian-").tempdir().context("a folder")?;
        let [work, groups] = ["work", "groups"].map(|name| dir.path().join(name));
        let mounts = [Mount::new("tmpfs", work.clone())?, Mount::new("cgroup2", groups.clone())?];
        // As unique as the folder.
        let group = Group(groups.join(dir.path().file_name().context("the folder has no name")?));
        fs::create_dir(&group.0).with_context(|| group.0.display().to_string())?;
        let script = "echo $$ > \"$0/cgroup.procs\" && exec unshare --mount --pid --fork --kill-child \
                      --uts --ipc --net --cgroup sh -c \"$1\" boot \"$2\" \"$3\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&group.0).arg(BOOT).arg(&base).arg(&work);
        let log = fs::File::create(dir.path().join("log")).context("a log")?;
        let errors = log.try_clone().context("a log")?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let outer = command.spawn().context("cannot start a shell")?;
        let mut machine = Self { outer, init: 0, _group: group, _mounts: mounts, dir };
        machine.init = machine.await_init()?;
        wait_until(BOOTS_WITHIN, LOOK_EVERY, || {
            match machine.run(["systemctl", "is-system-running"]) {
                Ok(state) if state == "running\n" => Ok(()),
                Ok(state) => Err(state),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .map_err(|error| {
            let failed = machine.run(["systemctl", "--failed", "--no-pager"]);
            error.context(failed.unwrap_or_else(|error| format!("{error:#}")))
        })?;
        Ok(machine)
    }

    /// Waits for systemd; returns its number on the host.
    fn await_init(&mut self) -> Result<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.outer.id());
        let mut init = None;
        let found = wait_until(BOOTS_WITHIN, LOOK_EVERY, || {
            let pid = fs::read_to_string(&children).ok().and_then(|text| text.trim().parse().ok());
            let name =
                pid.and_then(|pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
            if name.as_deref() == Some("systemd\n") {
                init = pid;
                return Ok(());
            }
            Err("systemd has not started".to_owned())
        });
        let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        found.with_context(log)?;
        init.context("no systemd")
    }

    /// A command in the machine, as root in `/root`.
    pub fn command<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "env", "-i", "--chdir=/root"]);
        command.args(["HOME=/root", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command in the machine; returns its output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = self.command(words);
        let Output { status, stdout, stderr } = command.output().context("cannot start nsenter")?;
        let [stdout, stderr] =
            [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if !status.success() {
            let words: Vec<_> = command.get_args().skip(8).collect();
            bail!("{words:?}: {status}\n{stdout}{stderr}");
        }
        Ok(stdout)
    }

    /// Runs a shell script in the machine, to its first command that fails; returns its output.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn script(&self, script: &str) -> Result<String> {
        self.run(["bash", "-e", "-o", "pipefail", "-c", script])
    }

    /// Where a path of the machine is on the host, for files and sockets.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Every path that differs from the installation, those that are gone included, sorted.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn changes(&self) -> Result<Vec<PathBuf>> {
        // The mount is of this process's namespace.
        let upper = self.dir.path().join("work/upper");
        let mut found = Vec::new();
        let mut folders = vec![upper.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let entry = entry.with_context(|| folder.display().to_string())?;
                match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    true => folders.push(entry.path()),
                    false => found.push(
                        Path::new("/")
                            .join(entry.path().strip_prefix(&upper).unwrap_or(Path::new("?"))),
                    ),
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Drop for DebianMachine {
    fn drop(&mut self) {
        // The kernel ends all of a PID namespace with its first process.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}
