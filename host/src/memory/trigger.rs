// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Waits for pressure without a timer.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Some task waited for memory for 150 ms of 2 s, in microseconds. Without a capability the window must
/// be a multiple of 2 s, and the kernel triggers once a window at most.
const THRESHOLD: &[u8] = b"some 150000 2000000\0";

/// A trigger of [PSI](https://docs.kernel.org/accounting/psi.html).
#[derive(Debug)]
pub(crate) struct Trigger(AsyncFd<File>);

impl Trigger {
    /// A trigger in this file.
    ///
    /// # Errors
    /// If there is no such file, or it takes no trigger.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(path)?;
        file.write_all(THRESHOLD)?;
        // SAFETY: a `File` gives the same descriptor until it is dropped, and that is open until then.
        Ok(Self(unsafe {
            AsyncFd::register_with_interest(file, Interest::PRIORITY | Interest::ERROR)?
        }))
    }

    /// Waits until some task has waited for memory for too long.
    ///
    /// # Errors
    /// If the control group is gone.
    pub(crate) async fn pressure(&self) -> io::Result<()> {
        let mut ready = self.0.ready(Interest::PRIORITY | Interest::ERROR).await?;
        if ready.ready().is_error() {
            return Err(io::ErrorKind::NotFound.into());
        }
        ready.clear_ready();
        Ok(())
    }
}
