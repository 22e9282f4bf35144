// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a child process: a keeper, which starts the next daemon by itself, and is started again if it ends.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use vhost_device_balloon::operator::StatusView;

/// virt-launcher waits a minute for the domain.
const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// A daemon that is told to end waits for one discarding call at most.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Between two keepers, doubled each time up to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// Why no daemon serves.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The program is not there, or the like.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// What was started.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A folder or a socket cannot be had.
    #[error("cannot prepare {}: {source}", path.display())]
    Prepare {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It says why on its standard error, which is this process's.
    #[error("the daemon ended before it served: {0}; its log says why")]
    Ended(ExitStatus),
    /// It runs, and does not answer.
    #[error("the daemon did not serve within {STARTS_WITHIN:?}")]
    Late,
    /// `ctl status`
    #[error("the daemon does not answer: {0}")]
    NoAnswer(String),
    /// It answers something else.
    #[error("the daemon's status has another form: {0}; take daemon and hook of one version")]
    OtherVersion(#[source] serde_json::Error),
}

/// Where the daemon's sockets are, as this process sees them.
///
/// virt-launcher takes every file beside its hook sockets for one of them; it does not look into folders.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    folder: PathBuf,
}

impl Sockets {
    /// Name of the folder, and of the socket for QEMU in it.
    pub(crate) const VMM: &str = "balloon/vm.sock";

    /// Below the folder of the hook's own socket.
    pub(crate) fn below(directory: &Path) -> Self {
        Self { folder: directory.join("balloon") }
    }

    fn vmm(&self) -> PathBuf {
        self.folder.join("vm.sock")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join("vm.ctl")
    }
}

/// Runs one daemon.
#[derive(Debug)]
pub(crate) struct Supervisor {
    program: PathBuf,
    sockets: Sockets,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    arguments: Vec<String>,
    stop: watch::Sender<bool>,
    keeps: JoinHandle<()>,
}

impl Supervisor {
    pub(crate) fn new(program: PathBuf, sockets: Sockets) -> Self {
        Self { program, sockets, running: Mutex::new(None) }
    }

    /// Starts the daemon unless one runs; returns once it serves.
    pub(crate) async fn start(&self, arguments: Vec<String>) -> Result<(), DaemonError> {
        let mut running = self.running.lock().await;
        if let Some(running) = &*running {
            if running.arguments != arguments {
                eprintln!(
                    "the daemon keeps its options until the VM ends: {:?}",
                    running.arguments
                );
            }
            return Ok(());
        }
        let folder = &self.sockets.folder;
        let prepare = |source| DaemonError::Prepare { path: folder.clone(), source };
        std::fs::create_dir_all(folder).map_err(prepare)?;
        let arrivals = arrivals(folder).map_err(|error| prepare(error.into()))?;
        let mut child = self.command(&arguments).spawn().map_err(|source| self.failed(source))?;
        let serves = timeout(STARTS_WITHIN, self.serves(&mut child, arrivals)).await;
        if let Err(error) = serves.unwrap_or(Err(DaemonError::Late)) {
            end(child).await;
            return Err(error);
        }
        let (stop, stopped) = watch::channel(false);
        let (command, sockets) = (self.command(&arguments), self.sockets.clone());
        let keeps = tokio::spawn(keep(child, command, self.program.clone(), sockets, stopped));
        *running = Some(Running { arguments, stop, keeps });
        Ok(())
    }

    /// Waits until the daemon answers, which it does when all of its sockets are there.
    async fn serves(
        &self,
        child: &mut Child,
        arrivals: AsyncFd<OwnedFd>,
    ) -> Result<(), DaemonError> {
        loop {
            match self.status().await {
                Err(DaemonError::NoAnswer(_)) => {}
                other => return other.map(drop),
            }
            tokio::select! {
                ended = child.wait() => {
                    return Err(ended.map_or_else(|source| self.failed(source), DaemonError::Ended));
                }
                ready = arrivals.readable() => {
                    let prepare = |source| DaemonError::Prepare {
                        path: self.sockets.folder.clone(),
                        source,
                    };
                    let mut ready = ready.map_err(prepare)?;
                    let mut events = [0; 4096];
                    while rustix::io::read(&arrivals, &mut events).is_ok() {}
                    ready.clear_ready();
                }
            }
        }
    }

    fn failed(&self, source: io::Error) -> DaemonError {
        DaemonError::Start { program: self.program.clone(), source }
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        let paths =
            [("--socket-path", self.sockets.vmm()), ("--control-socket", self.sockets.control())];
        let paths = paths.into_iter().flat_map(|(name, path)| [OsString::from(name), path.into()]);
        command.arg("--keeper").args(paths).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// What the daemon says of itself.
    pub(crate) async fn status(&self) -> Result<StatusView, DaemonError> {
        status(&self.program, &self.sockets).await
    }

    /// Whether a VMM is connected. A daemon that does not answer may have one.
    pub(crate) async fn may_be_connected(&self) -> bool {
        if self.running.lock().await.is_none() {
            return false;
        }
        !self.status().await.is_ok_and(|status| !status.connected)
    }

    /// Ends the daemon for good; returns once it has ended.
    pub(crate) async fn stop(&self) {
        let Some(running) = self.running.lock().await.take() else { return };
        let _ = running.stop.send(true);
        let _ = running.keeps.await;
    }
}

/// A watch for files that appear in a folder.
fn arrivals(folder: &Path) -> rustix::io::Result<AsyncFd<OwnedFd>> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    // SAFETY: the descriptor is owned, and is open until the registration is dropped with it.
    unsafe { AsyncFd::register(watch) }.map_err(|_| rustix::io::Errno::NOMEM)
}

async fn status(program: &Path, sockets: &Sockets) -> Result<StatusView, DaemonError> {
    let mut command = Command::new(program);
    command.args(["ctl", "--json", "--control-socket"]).arg(sockets.control()).arg("status");
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output =
        output.map_err(|source| DaemonError::Start { program: program.to_owned(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(DaemonError::NoAnswer(said));
    }
    serde_json::from_slice(&output.stdout).map_err(DaemonError::OtherVersion)
}

/// Starts the next keeper whenever one ends, until told to stop.
async fn keep(
    mut child: Child,
    mut command: Command,
    program: PathBuf,
    sockets: Sockets,
    mut stopped: watch::Receiver<bool>,
) {
    let [mut pause, longest] = PAUSES;
    loop {
        let ended = tokio::select! {
            ended = child.wait() => ended,
            _ = stopped.changed() => break,
        };
        let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        eprintln!("the keeper of the daemon ended by itself: {how}");
        // Its daemon serves on, and nothing else can listen meanwhile.
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                _ = stopped.changed() => return end_orphan(&program, &sockets).await,
            }
            pause = longest.min(pause * 2);
            if status(&program, &sockets).await.is_ok() {
                continue;
            }
            match command.spawn() {
                Ok(next) => {
                    child = next;
                    break;
                }
                Err(error) => eprintln!("cannot start {}: {error}", program.display()),
            }
        }
    }
    end(child).await;
    end_orphan(&program, &sockets).await;
}

/// Ends a keeper, which ends its daemon.
async fn end(mut child: Child) {
    signal(child.id(), Signal::TERM);
    if timeout(ENDS_WITHIN, child.wait()).await.is_err() {
        eprintln!("the daemon did not end within {ENDS_WITHIN:?}, and is killed");
        let _ = child.kill().await;
    }
}

/// Ends a daemon whose keeper is gone.
async fn end_orphan(program: &Path, sockets: &Sockets) {
    if let Ok(status) = status(program, sockets).await {
        signal(Some(status.pid), Signal::TERM);
    }
}

fn signal(pid: Option<u32>, signal: Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}
