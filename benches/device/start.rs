// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long the daemon takes to listen.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::support::{BINARY, TIMEOUT};

pub(crate) const STARTS: u32 = 20;

/// Microseconds from starting the process to the first connection that it takes.
#[derive(Serialize)]
pub(crate) struct Start {
    pub(crate) median_us: u64,
    pub(crate) max_us: u64,
}

/// Measures it.
///
/// # Errors
/// If the daemon does not listen.
pub(crate) fn measure() -> Result<Start> {
    let mut times = Histogram::<u64>::new(3)?;
    for _ in 0..STARTS {
        times.record(one(&[])?)?;
    }
    Ok(Start { median_us: times.value_at_quantile(0.5), max_us: times.max() })
}

/// One start with these arguments, in microseconds.
///
/// # Errors
/// If the daemon does not listen.
pub(crate) fn one(args: &[&str]) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("s");
    let begun = Instant::now();
    let mut daemon = Command::new(BINARY)
        .arg("--socket-path")
        .arg(&socket)
        .args(["--log-level", "off"])
        .args(args)
        .spawn()?;
    while UnixStream::connect(&socket).is_err() {
        ensure!(begun.elapsed() < TIMEOUT, "the daemon does not listen");
    }
    let time = u64::try_from(begun.elapsed().as_micros())?;
    daemon.kill()?;
    daemon.wait()?;
    Ok(time)
}
