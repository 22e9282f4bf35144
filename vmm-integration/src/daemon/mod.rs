// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a process: started, watched through its log, ended by signals.

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::retry_on_intr,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal,
        set_parent_process_death_signal, waitid,
    },
};
use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

mod kept;
mod summary;

pub use kept::KeptDaemon;
pub use summary::Summary;

/// What a daemon that is ready logs: it listens, and has everything that it needs for that.
const READY: &str = "listening on ";

/// What a session logs when it begins.
const CONNECTED: &str = "frontend connected";

/// What a descriptor that is passed to a daemon is called there.
pub const PASSED_FD: RawFd = 100;

/// How a daemon is started.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Arguments behind those that [`DaemonProcess`] gives itself.
    pub args: Vec<OsString>,
    /// Variables added to the environment.
    pub env: Vec<(OsString, OsString)>,
    /// How long it may take until it listens.
    pub start_timeout: Duration,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self { args: Vec::new(), env: Vec::new(), start_timeout: Duration::from_secs(10) }
    }
}

impl DaemonOptions {
    fn of<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// How a daemon ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// What it left behind.
    pub status: ExitStatus,
    /// From the signal until it was gone.
    pub after: Duration,
}

/// A running daemon with a directory of its own for its socket and its log.
///
/// Dropping it kills the daemon. So does the end of the thread that started it
/// (`PR_SET_PDEATHSIG`), so that no daemon outlives an aborted test: start it from a thread that
/// stays.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use std::time::Duration;
/// use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
///
/// let binary = "target/release/vhost-device-balloon".as_ref();
/// let mut daemon = DaemonProcess::spawn(binary, &DaemonOptions::default())?;
/// println!("attach a VMM to {}", daemon.socket().display());
/// let ended = daemon.terminate(Duration::from_secs(5))?;
/// assert!(ended.status.success(), "{}", daemon.log());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DaemonProcess {
    child: Child,
    pidfd: OwnedFd,
    dir: Arc<TempDir>,
}

impl DaemonProcess {
    /// Starts `binary` with `--socket-path` and waits until it says that it listens.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time; the error holds its log.
    pub fn spawn(binary: &Path, options: &DaemonOptions) -> Result<Self> {
        Self::listening(binary, options, new_dir()?)
    }

    fn listening(binary: &Path, options: &DaemonOptions, dir: Arc<TempDir>) -> Result<Self> {
        let mut socket = OsString::from("--socket-path=");
        socket.push(socket_in(&dir));
        let daemon = Self::start(binary, socket, None, options, dir)?;
        if daemon.wait_for_log(READY, options.start_timeout)? {
            return Ok(daemon);
        }
        bail!("the daemon does not listen\n{}", daemon.log())
    }

    /// The same with a control socket as well, at [`DaemonProcess::control_socket`].
    ///
    /// # Errors
    /// As [`DaemonProcess::spawn`].
    pub fn spawn_controlled<A: Into<OsString>>(
        binary: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        Self::controlled(binary, DaemonOptions::of(args), new_dir()?)
    }

    /// A daemon with the sockets of this one, which has ended, and the same log from its beginning.
    ///
    /// # Errors
    /// As [`DaemonProcess::spawn`].
    pub fn successor<A: Into<OsString>>(
        &self,
        binary: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        Self::controlled(binary, DaemonOptions::of(args), Arc::clone(&self.dir))
    }

    fn controlled(binary: &Path, mut options: DaemonOptions, dir: Arc<TempDir>) -> Result<Self> {
        let mut control = OsString::from("--control-socket=");
        control.push(control_in(&dir));
        options.args.push(control);
        Self::listening(binary, &options, dir)
    }

    /// Starts `binary` with `--fd` and this descriptor, which is number [`PASSED_FD`] there. Does
    /// not wait for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_on(binary: &Path, socket: OwnedFd, options: &DaemonOptions) -> Result<Self> {
        let argument = format!("--fd={PASSED_FD}").into();
        Self::start(binary, argument, Some(socket), options, new_dir()?)
    }

    fn start(
        binary: &Path,
        socket: OsString,
        passed: Option<OwnedFd>,
        options: &DaemonOptions,
        dir: Arc<TempDir>,
    ) -> Result<Self> {
        let log = File::create(log_in(&dir)).context("cannot create the daemon's log")?;
        let mut command = Command::new(binary);
        command.arg(socket).args(&options.args).envs(options.env.iter().cloned());
        command.arg("--log-level=info");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: the closure makes two system calls and nothing else, which neither allocates nor
        // takes a lock. The number that it takes is none that anything in the child uses.
        unsafe {
            command.pre_exec(move || {
                if let Some(fd) = &passed
                    && libc::dup2(fd.as_raw_fd(), PASSED_FD) < 0
                {
                    return Err(io::Error::last_os_error());
                }
                Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
            });
        }
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd, dir }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error).context("cannot watch the daemon")
            }
        }
    }

    /// The socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.dir)
    }

    /// The control socket of a daemon that was given one by [`DaemonProcess::spawn_controlled`].
    pub fn control_socket(&self) -> PathBuf {
        control_in(&self.dir)
    }

    /// Its directory, removed with it. Other sockets of its may lie there.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has written so far.
    pub fn log(&self) -> String {
        match fs::read(log_in(&self.dir)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(its log cannot be read: {error})"),
        }
    }

    /// The lines of its log that are whole: the last may be on its way.
    fn lines(&self) -> String {
        let mut log = self.log();
        log.truncate(log.rfind('\n').map_or(0, |end| end + 1));
        log
    }

    /// Waits until a line of its log holds `text`; says whether one does. That of a daemon that has
    /// ended is not waited for.
    ///
    /// # Errors
    /// When its log cannot be watched.
    pub fn wait_for_log(&self, text: &str, timeout: Duration) -> Result<bool> {
        self.wait_for_lines(timeout, |lines| lines.contains(text))
    }

    /// Waits until so many lines of its log hold `text`; says whether they do.
    ///
    /// # Errors
    /// When its log cannot be watched.
    pub fn wait_for_log_times(&self, text: &str, times: usize, timeout: Duration) -> Result<bool> {
        self.wait_for_lines(timeout, |lines| lines.matches(text).count() >= times)
    }

    /// Waits until the whole lines of its log are as `wanted` says; says whether they are.
    fn wait_for_lines(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<bool> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, log_in(&self.dir), inotify::WatchFlags::MODIFY)?;
        let deadline = Instant::now() + timeout;
        let mut over = false;
        while !wanted(&self.lines()) {
            if over {
                return Ok(false);
            }
            let mut fds =
                [PollFd::new(&events, PollFlags::IN), PollFd::new(&self.pidfd, PollFlags::IN)];
            let left = deadline.saturating_duration_since(Instant::now());
            wait_for(&mut fds, left)?;
            // Then it is looked at once more.
            over = left.is_zero() || !fds[1].revents().is_empty();
            drain(&events)?;
        }
        Ok(true)
    }

    /// Waits until it has summed up every session that has begun, and returns the last one. If one
    /// goes on for longer, it is the last that has ended.
    ///
    /// # Errors
    /// When none has ended within `timeout`, or the line cannot be read.
    pub fn session_summary(&self, timeout: Duration) -> Result<Summary> {
        self.wait_for_lines(timeout, |lines| {
            let sessions = lines.matches(CONNECTED).count();
            sessions > 0 && lines.matches(summary::PREFIX).count() >= sessions
        })?;
        let log = self.lines();
        Summary::last_in(&log).with_context(|| format!("no session has ended\n{log}"))?
    }

    /// How many file descriptors it holds.
    ///
    /// # Errors
    /// When it is gone.
    pub fn fd_count(&self) -> Result<usize> {
        let fds = format!("/proc/{}/fd", self.pid());
        Ok(fs::read_dir(&fds).with_context(|| format!("cannot list {fds}"))?.count())
    }

    /// How many mappings its address space has.
    ///
    /// # Errors
    /// When it is gone.
    pub fn mapping_count(&self) -> Result<usize> {
        let maps = format!("/proc/{}/maps", self.pid());
        Ok(fs::read_to_string(&maps)
            .with_context(|| format!("cannot read {maps}"))?
            .lines()
            .count())
    }

    /// The names of its threads.
    ///
    /// # Errors
    /// When it is gone.
    pub fn threads(&self) -> Result<Vec<String>> {
        let tasks = format!("/proc/{}/task", self.pid());
        let mut names = Vec::new();
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            // A thread may end while they are listed.
            if let Ok(name) = fs::read_to_string(task?.path().join("comm")) {
                names.push(name.trim_end().to_owned());
            }
        }
        Ok(names)
    }

    /// Waits for it to end by itself; `None` where it still runs after `timeout`.
    ///
    /// # Errors
    /// What waiting for it says.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        wait_for(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], timeout)?;
        Ok(self.child.try_wait()?)
    }

    /// Asks it to end (SIGTERM) and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after `timeout`; it is killed then, and the error holds its log.
    pub fn terminate(&mut self, timeout: Duration) -> Result<Ended> {
        let start = Instant::now();
        self.signal(Signal::TERM)?;
        if let Some(status) = self.wait(timeout)? {
            return Ok(Ended { status, after: start.elapsed() });
        }
        self.kill()?;
        bail!("still there {timeout:?} after SIGTERM\n{}", self.log())
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// What signalling or waiting says.
    pub fn kill(&mut self) -> Result<Ended> {
        let start = Instant::now();
        self.signal(Signal::KILL)?;
        Ok(Ended { status: self.child.wait()?, after: start.elapsed() })
    }

    /// Sends it a signal, unless it has been waited for. After SIGSTOP, all of its threads have
    /// stopped: each goes on until the one that was chosen to take the signal tells it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            pidfd_send_signal(&self.pidfd, signal)?;
            if signal == Signal::STOP {
                let stopped =
                    WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), stopped))?;
            }
        }
        Ok(())
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        // Both fail only when the process has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn new_dir() -> Result<Arc<TempDir>> {
    tempfile::Builder::new()
        .prefix("vhost-device-balloon-")
        .tempdir()
        .map(Arc::new)
        .context("cannot create a directory for the daemon")
}

fn socket_in(dir: &TempDir) -> PathBuf {
    dir.path().join("vhost-user.sock")
}

fn control_in(dir: &TempDir) -> PathBuf {
    dir.path().join("control.sock")
}

fn log_in(dir: &TempDir) -> PathBuf {
    dir.path().join("log")
}

/// Polls `fds`; a signal that comes in between is passed over.
pub(crate) fn wait_for(fds: &mut [PollFd<'_>], timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(fds, Some(&Timespec::try_from(left)?)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(|_| ()).context("cannot poll"),
        }
    }
}

fn drain(events: &OwnedFd) -> Result<()> {
    let mut bytes = [0_u8; 4096];
    loop {
        match rustix::io::read(events, &mut bytes) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error).context("cannot read file events"),
        }
    }
}
