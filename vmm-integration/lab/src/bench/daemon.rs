// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon of an experiment, with counters that can be read while it runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::experiment::Context;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;

/// How long a daemon may take to answer and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Discards {
    /// Ranges that were reported to it.
    pub(super) ranges: u64,
    /// Bytes in them.
    pub(super) bytes: u64,
    /// System calls on them.
    pub(super) calls: u64,
}

impl Discards {
    /// What came behind an earlier count.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            ranges: self.ranges.saturating_sub(before.ranges),
            bytes: self.bytes.saturating_sub(before.bytes),
            calls: self.calls.saturating_sub(before.calls),
        }
    }
}

/// A daemon with a control socket.
pub(super) struct CountedDaemon {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl CountedDaemon {
    /// Starts it, with these arguments as well.
    ///
    /// # Errors
    /// If it does not start.
    pub(super) fn start(context: &Context<'_>, args: Vec<OsString>) -> Result<Self> {
        let daemon = DaemonProcess::spawn_controlled(&context.daemon()?, args)?;
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        Ok(Self { daemon, control })
    }

    /// For a frontend.
    pub(super) fn socket(&self) -> PathBuf {
        self.daemon.socket()
    }

    /// Of its process.
    pub(super) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// If it does not say.
    pub(super) fn discards(&self) -> Result<Discards> {
        let counters = self.control.get("/v1/counters")?;
        let number = |path: &str| {
            let value = counters.pointer(path).and_then(serde_json::Value::as_u64);
            value.with_context(|| format!("the daemon's counters have no {path}: {counters}"))
        };
        Ok(Discards {
            ranges: number("/reporting/ranges")?,
            bytes: number("/reporting/bytes")?,
            calls: number("/discard_calls")?,
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not end well.
    pub(super) fn finish(mut self) -> Result<()> {
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
