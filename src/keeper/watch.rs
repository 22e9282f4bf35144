// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When another daemon is started, and when the keeper ends.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, waitpid,
};

use super::check::{self, Check};
use super::child;
use super::notices::Notices;
use crate::cli::exit::DaemonExit;

/// A daemon that ends sooner is started again a little later each time.
const SOON: Duration = Duration::from_millis(100);
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Daemons in a row that may end before they serve. After these the VM is given up.
const MOST_FAILURES: u32 = 5;
/// How long an upgraded daemon may take to serve.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);

/// Runs daemons with these arguments, which make these sockets, one after another, until one ends for
/// good or a signal asks to end. Returns the last one's status.
pub(crate) fn run(args: Vec<OsString>, sockets: Vec<PathBuf>) -> ExitCode {
    match Keeper::new(args, sockets).and_then(|mut keeper| keeper.run()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(&format!("cannot go on: {error}"));
            DaemonExit::Failed.into()
        }
    }
}

/// Tells the operator. The daemon says the rest.
fn say(text: &str) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    // A reader that does not read must not keep the next daemon away.
    if !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1)) {
        return;
    }
    let _ = writeln!(io::stderr(), "vhost-device-balloon: keeper: {text}");
}

struct Keeper {
    args: Vec<OsString>,
    /// Where a newer program appears.
    path: PathBuf,
    /// The last program that served, whatever is at the path now.
    good: OwnedFd,
    /// One that is to prove that it serves.
    candidate: Option<OwnedFd>,
    /// The program at the path is being asked whether it could go on.
    check: Option<Check>,
    notices: Notices,
    signals: SignalFd,
    kept: BTreeMap<String, OwnedFd>,
    /// Daemons in a row that ended before they served.
    failures: u32,
    /// How long the next one waits.
    rest: Duration,
    /// Was asked to end.
    ending: bool,
    /// Something has served.
    served: bool,
    /// The counters are to be logged.
    reports: bool,
    /// The sockets' files, once they were there.
    sockets: Vec<(PathBuf, Option<(u64, u64)>)>,
    /// The next one goes on in the place of one that did not serve.
    went_back: bool,
}

/// The daemon of the moment.
struct Daemon {
    pid: Pid,
    ended: OwnedFd,
    since: Instant,
    ready: bool,
}

impl Keeper {
    fn new(args: Vec<OsString>, sockets: Vec<PathBuf>) -> io::Result<Self> {
        let mut taken = SigSet::empty();
        let ends = [NixSignal::SIGTERM, NixSignal::SIGINT, NixSignal::SIGQUIT];
        for signal in ends.into_iter().chain([NixSignal::SIGHUP, NixSignal::SIGUSR1]) {
            taken.add(signal);
        }
        taken.thread_block()?;
        Ok(Self {
            args,
            path: env::current_exe()?,
            good: File::open("/proc/self/exe")?.into(),
            candidate: None,
            check: None,
            notices: Notices::listen()?,
            signals: SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            kept: BTreeMap::new(),
            failures: 0,
            rest: Duration::ZERO,
            ending: false,
            served: false,
            went_back: false,
            reports: false,
            sockets: sockets.into_iter().map(|path| (path, None)).collect(),
        })
    }

    fn run(&mut self) -> io::Result<u8> {
        loop {
            self.wait(None, Some(self.rest))?;
            if self.ending {
                self.remove_sockets();
                return Ok(DaemonExit::Done as u8);
            }
            let mut daemon = match self.start() {
                Ok(daemon) => daemon,
                Err(error) if self.served && self.failures < MOST_FAILURES => {
                    say(&format!("cannot start a daemon, trying again: {error}"));
                    self.failures += 1;
                    self.rest = LONGEST_REST;
                    continue;
                }
                Err(error) => {
                    self.remove_sockets();
                    return Err(error);
                }
            };
            let status = self.serve(&mut daemon)?;
            if let Some(last) = self.judge(&daemon, status) {
                self.remove_sockets();
                return Ok(last);
            }
        }
    }

    /// Opens the program that is at the path now. Without one the last that served goes on.
    fn take_candidate(&mut self) {
        match File::open(&self.path) {
            Ok(program) => self.candidate = Some(program.into()),
            Err(error) => say(&format!("cannot open {}: {error}", self.path.display())),
        }
    }

    /// Notes the sockets' files of a daemon that serves.
    fn note_sockets(&mut self) {
        let id = |path: &Path| fs::symlink_metadata(path).map(|file| (file.dev(), file.ino())).ok();
        for (path, inode) in &mut self.sockets {
            *inode = inode.or_else(|| id(path));
        }
    }

    /// Removes what a daemon that did not end in order has left.
    fn remove_sockets(&self) {
        for (path, inode) in &self.sockets {
            let now = fs::symlink_metadata(path).map(|file| (file.dev(), file.ino())).ok();
            if now.is_some() && now == *inode {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn start(&mut self) -> io::Result<Daemon> {
        let program = self.candidate.as_ref().unwrap_or(&self.good);
        let went_back = std::mem::take(&mut self.went_back);
        let (notify, kept) = (self.notices.name(), &self.kept);
        let pid = child::start(program.as_fd(), &self.args, notify, kept, went_back)?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Daemon { pid, ended, since: Instant::now(), ready: false })
    }

    /// Listens to a daemon until it ends.
    fn serve(&mut self, daemon: &mut Daemon) -> io::Result<WaitStatus> {
        loop {
            let until = (self.candidate.is_some() && !daemon.ready)
                .then(|| (daemon.since + UPGRADE_WITHIN).saturating_duration_since(Instant::now()));
            let asked = self.ending;
            self.wait(Some(daemon), until)?;
            self.check = self.check.take().and_then(Check::look);
            if std::mem::take(&mut self.reports) {
                kill_process(daemon.pid, Signal::USR1)?;
            }
            if self.ending && !asked {
                // Which the daemon takes for its end, and not for that of one of many.
                kill_process(daemon.pid, Signal::QUIT)?;
            }
            let said = self.notices.receive(daemon.pid, &mut self.kept)?;
            if said.ready {
                self.served = true;
                self.failures = 0;
                daemon.ready = true;
                self.note_sockets();
                if let Some(candidate) = self.candidate.take() {
                    self.good = candidate;
                }
            }
            for check in said.checks {
                match self.check {
                    None => self.check = Check::start(&self.path, check),
                    Some(_) => check::refuse(check, "is being asked already"),
                }
            }
            if said.upgrade {
                self.take_candidate();
            }
            let late = self.candidate.is_some() && !said.upgrade && !daemon.ready;
            if late && daemon.since.elapsed() >= UPGRADE_WITHIN {
                kill_process(daemon.pid, Signal::KILL)?;
            }
            if let Some((_, status)) = waitpid(Some(daemon.pid), WaitOptions::NOHANG)? {
                // Its last words.
                let said = self.notices.receive(daemon.pid, &mut self.kept)?;
                daemon.ready |= said.ready;
                if said.upgrade {
                    self.take_candidate();
                }
                return Ok(status);
            }
        }
    }

    /// What follows from the end of a daemon; the status to end with if nothing does.
    fn judge(&mut self, daemon: &Daemon, status: WaitStatus) -> Option<u8> {
        let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
        let [done, handed_over] =
            [DaemonExit::Done, DaemonExit::HandedOver].map(|status| code == Some(status as u8));
        if self.ending && (done || handed_over) {
            return Some(DaemonExit::Done as u8);
        }
        if self.ending || done {
            return Some(code.unwrap_or(DaemonExit::Failed as u8));
        }
        let how = match (code, status.terminating_signal()) {
            (Some(code), _) => format!("with status {code}"),
            (None, Some(signal)) => format!("by signal {signal}"),
            (None, None) => "somehow".to_owned(),
        };
        let pid = daemon.pid.as_raw_pid();
        if !daemon.ready {
            if !self.served {
                // It has said why.
                return Some(code.unwrap_or(DaemonExit::Failed as u8));
            }
            self.failures += 1;
            if self.candidate.take().is_some() {
                self.went_back = true;
                say(&format!("{} does not serve, it ended {how}: going back", self.path.display()));
            } else if self.failures >= MOST_FAILURES {
                say(&format!("{} daemons ended before they served, the last {how}", self.failures));
                return Some(code.unwrap_or(DaemonExit::Failed as u8));
            }
        }
        self.rest = match daemon.since.elapsed() < SOON && !handed_over {
            true => (self.rest * 2).clamp(FIRST_REST, LONGEST_REST),
            false => Duration::ZERO,
        };
        if !handed_over {
            say(&format!("the daemon with PID {pid} ended {how}: starting another"));
        }
        None
    }

    /// Waits for a signal, a notice or the end of `daemon`, and no longer than `timeout`; without a
    /// daemon for that time, or a signal.
    fn wait(&mut self, daemon: Option<&Daemon>, timeout: Option<Duration>) -> io::Result<()> {
        let signals = self.signals.as_fd();
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        if let Some(daemon) = daemon {
            fds.push(PollFd::new(&self.notices, PollFlags::IN));
            fds.push(PollFd::new(&daemon.ended, PollFlags::IN));
        }
        let mut timeout = timeout;
        // Without a daemon there is none that would hear the answer.
        if let Some(check) = self.check.as_ref().filter(|_| daemon.is_some()) {
            fds.push(PollFd::from_borrowed_fd(check.ended(), PollFlags::IN));
            let left = check.until().saturating_duration_since(Instant::now());
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        }
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(signal) = self.signals.read_signal()? {
            match signal.ssi_signo {
                // The terminal that the keeper was started from is gone, and no more.
                signo if signo == NixSignal::SIGHUP as u32 => {}
                signo if signo == NixSignal::SIGUSR1 as u32 => self.reports = true,
                _ => self.ending = true,
            }
        }
        Ok(())
    }
}
