// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemons that end one after the other, each with one that goes on.

use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use strum::{Display, EnumString, VariantNames};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::KeptDaemon;

use crate::experiment::Context;
use crate::progress;

/// How long the guest may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::race) enum Way {
    /// SIGKILL.
    Killed,
    /// SIGTERM.
    Ended,
    /// `POST /v1/upgrade`.
    Upgraded,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Killed, Self::Ended, Self::Upgraded];
}

/// A keeper with its daemon, and how its daemons end.
pub(super) struct Daemons<'a> {
    kept: KeptDaemon,
    control: ControlSocket,
    way: Way,
    times: u16,
    context: &'a Context<'a>,
}

impl<'a> Daemons<'a> {
    /// Starts the first.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(way: Way, times: u16, context: &'a Context<'a>) -> Result<Self> {
        let kept = KeptDaemon::spawn(&context.daemon()?, ["--statistics"])?;
        let control = ControlSocket::new(&kept.keeper().control_socket(), PATIENCE);
        Ok(Self { kept, control, way, times, context })
    }

    /// For a frontend.
    pub(super) fn socket(&self) -> PathBuf {
        self.kept.keeper().socket()
    }

    /// Reaches the daemon of the moment.
    pub(super) fn control(&self) -> &ControlSocket {
        &self.control
    }

    /// The numbers of the daemons that end; an error once an operator has interrupted the run.
    pub(super) fn times(&self) -> impl Iterator<Item = Result<u16>> {
        (0..self.times).map(|time| {
            self.context.progress.at(time.into(), self.times.into());
            progress::check()?;
            Ok(time)
        })
    }

    /// Ends the daemon at one of these moments, another each time; returns the time until the next one serves.
    ///
    /// # Errors
    /// When the next one does not.
    pub(super) fn replace(&self, moments: Range<Duration>) -> Result<Duration> {
        let width = (moments.end - moments.start).as_micros();
        let time = u128::from(self.context.seed) + self.kept.successions() as u128;
        // A step of 0.37 of the width goes all over it: before, in and after a report.
        let moment = time * (width * 37 / 100) % width;
        thread::sleep(moments.start + Duration::from_micros(u64::try_from(moment)?));
        match self.way {
            Way::Killed => self.kept.replace(Signal::KILL),
            Way::Ended => self.kept.replace(Signal::TERM),
            Way::Upgraded => {
                self.kept.succeed(|_| self.control.done("POST", "/v1/upgrade", "").map(drop))
            }
        }
    }

    /// Ends the last one.
    ///
    /// # Errors
    /// When it does not end well.
    pub(super) fn end(self) -> Result<()> {
        self.kept.end()?;
        Ok(())
    }
}
