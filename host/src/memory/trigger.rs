// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Waits for pressure without a timer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::pressure::some_total;

/// Some task waited for memory for 150 ms of 2 s, in microseconds. Without a capability the window must
/// be a multiple of 2 s, and the kernel triggers once a window at most.
const THRESHOLD: &[u8] = b"some 150000 2000000\0";

/// What tasks must have waited, in microseconds, since the last time that pressure was noticed. The kernel may
/// count what happened before there was a trigger, and then the first event says nothing. Two events
/// share a part of a window, so that this is less than the threshold.
const LEAST_STALL: u64 = 75_000;

/// A trigger of [PSI](https://docs.kernel.org/accounting/psi.html).
#[derive(Debug)]
pub(crate) struct Trigger {
    path: PathBuf,
    events: AsyncFd<File>,
    /// Microseconds that tasks had waited when pressure was noticed last.
    total: u64,
}

impl Trigger {
    /// A trigger in this file.
    ///
    /// # Errors
    /// If there is no such file, or it takes no trigger.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(path)?;
        file.write_all(THRESHOLD)?;
        let interest = Interest::PRIORITY | Interest::ERROR;
        // SAFETY: a `File` gives the same descriptor until it is dropped, and that is open until then.
        let events = unsafe { AsyncFd::register_with_interest(file, interest)? };
        Ok(Self { path: path.to_owned(), events, total: total(path)? })
    }

    /// Waits until some task has waited for memory for too long.
    ///
    /// # Errors
    /// If the control group is gone.
    pub(crate) async fn pressure(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.events.ready(Interest::PRIORITY | Interest::ERROR).await?;
            if ready.ready().is_error() {
                return Err(io::ErrorKind::NotFound.into());
            }
            ready.clear_ready();
            let total = total(&self.path)?;
            if total.saturating_sub(self.total) >= LEAST_STALL {
                self.total = total;
                return Ok(());
            }
        }
    }
}

fn total(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    some_total(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no total of stalls"))
}
