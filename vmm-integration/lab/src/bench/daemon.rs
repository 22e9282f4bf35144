// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon of an experiment, with counters that can be read while it runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::experiment::Context;
use crate::guest::GuestKind;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;

/// How long a daemon may take to answer and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Discards {
    /// Ranges that were reported to it.
    pub(crate) ranges: u64,
    /// Bytes in them.
    pub(crate) bytes: u64,
    /// System calls on them.
    pub(crate) calls: u64,
}

impl Discards {
    /// What came behind an earlier count.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            ranges: self.ranges.saturating_sub(before.ranges),
            bytes: self.bytes.saturating_sub(before.bytes),
            calls: self.calls.saturating_sub(before.calls),
        }
    }
}

/// A daemon with a control socket.
pub(crate) struct CountedDaemon {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl CountedDaemon {
    /// Starts it, with these arguments as well.
    ///
    /// # Errors
    /// If it does not start.
    pub(crate) fn start(context: &Context<'_>, args: Vec<OsString>) -> Result<Self> {
        let daemon = DaemonProcess::spawn_controlled(&context.daemon()?, args)?;
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        Ok(Self { daemon, control })
    }

    /// Starts it with the options that a guest's VMM needs.
    ///
    /// # Errors
    /// If it does not start.
    pub(crate) fn for_guest(guest: GuestKind, context: &Context<'_>) -> Result<Self> {
        Self::start(context, guest.vmm().daemon_args().iter().map(OsString::from).collect())
    }

    /// For a frontend.
    pub(crate) fn socket(&self) -> PathBuf {
        self.daemon.socket()
    }

    /// Of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Reports that it has served so far.
    ///
    /// # Errors
    /// If it does not say.
    pub(crate) fn reports(&self) -> Result<u64> {
        let counters = self.control.get("/v1/counters")?;
        let chains = counters.pointer("/chains/reporting").and_then(serde_json::Value::as_u64);
        chains.with_context(|| format!("the daemon does not count chains: {counters}"))
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// If it does not say.
    pub(crate) fn discards(&self) -> Result<Discards> {
        let counters = self.control.get("/v1/counters")?;
        let number = |path: &str| {
            let value = counters.pointer(path).and_then(serde_json::Value::as_u64);
            value.with_context(|| format!("the daemon's counters have no {path}: {counters}"))
        };
        Ok(Discards {
            ranges: number("/ranges/reporting")?,
            bytes: number("/named_bytes/reporting")?,
            calls: number("/discard_calls")?,
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not end well.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.daemon.terminate(PATIENCE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_after_a_reset_do_not_go_below_zero() {
        let early = Discards { ranges: 3, bytes: 30, calls: 2 };
        let late = Discards { ranges: 5, bytes: 50, calls: 1 };
        assert_eq!(late.since(early), Discards { ranges: 2, bytes: 20, calls: 0 });
    }
}
