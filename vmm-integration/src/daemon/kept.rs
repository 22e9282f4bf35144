// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A keeper with its daemon (`--keeper`), whose daemons are ended and followed by others.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{DaemonOptions, DaemonProcess, new_dir};

/// What a daemon logs that serves the frontend of the one before it.
const GOES_ON: &str = "going on with the frontend of the daemon before this one";
/// How long the next daemon may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The keeper and the daemon of the moment. Dropping it ends both.
#[derive(Debug)]
pub struct KeptDaemon {
    keeper: DaemonProcess,
}

impl KeptDaemon {
    /// Starts `binary` with `--keeper`, both sockets and these arguments.
    ///
    /// # Errors
    /// As [`DaemonProcess::spawn_controlled`].
    pub fn spawn<A: Into<OsString>>(
        binary: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        Self::spawn_with(binary, args, Vec::new())
    }

    /// The same with these variables in the environment of all of them.
    ///
    /// # Errors
    /// As [`DaemonProcess::spawn_controlled`].
    pub fn spawn_with<A: Into<OsString>>(
        binary: &Path,
        args: impl IntoIterator<Item = A>,
        env: Vec<(OsString, OsString)>,
    ) -> Result<Self> {
        let args = std::iter::once("--keeper".into()).chain(args.into_iter().map(Into::into));
        let options = DaemonOptions { args: args.collect(), env, ..DaemonOptions::default() };
        Ok(Self { keeper: DaemonProcess::controlled(binary, options, new_dir()?)? })
    }

    /// The keeper's process, its sockets and the log of all its daemons.
    pub fn keeper(&self) -> &DaemonProcess {
        &self.keeper
    }

    /// The daemon of the moment.
    ///
    /// # Errors
    /// When there is none.
    pub fn daemon(&self) -> Result<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.keeper.pid());
        let children = fs::read_to_string(path).context("the keeper is gone")?;
        let first = children.split_whitespace().next().context("there is no daemon")?;
        Pid::from_raw(first.parse()?).context("no process has the number 0")
    }

    /// How many daemons have gone on with a frontend.
    pub fn successions(&self) -> usize {
        self.keeper.log().matches(GOES_ON).count()
    }

    /// Ends the daemon with a signal; returns how long it took until the next one served its frontend.
    ///
    /// # Errors
    /// When the next one does not.
    pub fn replace(&self, signal: Signal) -> Result<Duration> {
        self.succeed(|kept| Ok(kill_process(kept.daemon()?, signal)?))
    }

    /// The same with something else that ends the daemon.
    ///
    /// # Errors
    /// What `end` says, or when the next one does not serve.
    pub fn succeed(&self, end: impl FnOnce(&Self) -> Result<()>) -> Result<Duration> {
        let before = self.successions();
        let started = Instant::now();
        end(self)?;
        let served = self.keeper.wait_for_log_times(GOES_ON, before + 1, PATIENCE)?;
        ensure!(served, "no daemon goes on with the frontend\n{}", self.keeper.log());
        Ok(started.elapsed())
    }

    /// Ends both, in order; returns the log of all daemons.
    ///
    /// # Errors
    /// When the keeper does not end, or not well; the error holds the log.
    pub fn end(mut self) -> Result<String> {
        let ended = self.keeper.terminate(PATIENCE)?;
        let log = self.keeper.log();
        ensure!(ended.status.success(), "{}\n{log}", ended.status);
        Ok(log)
    }
}

impl Drop for KeptDaemon {
    /// The keeper alone would leave its daemon behind.
    fn drop(&mut self) {
        let _ = self.keeper.terminate(PATIENCE);
    }
}
