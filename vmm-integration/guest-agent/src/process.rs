// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes beside init, which the OOM killer may have.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use guest_agent::{ProcessEnd, pattern};

use crate::memory::Mapping;
use crate::placed::task;
use crate::storm;
use crate::victims::process;

/// Makes the program run as a process that uses memory.
const ROLE: &str = "use-memory";

/// Starts one that fills `bytes` of memory with a pattern and checks them, and waits for its end.
pub(crate) fn use_memory(bytes: u64) -> Result<ProcessEnd> {
    let status = Command::new("/proc/self/exe")
        .args([ROLE.to_owned(), bytes.to_string()])
        .status()
        .context("starting a process")?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(ProcessEnd::Done),
        (_, Some(signal)) => Ok(ProcessEnd::Killed { signal }),
        _ => bail!("the process ended with {status}: see the serial console"),
    }
}

/// Is such a process, if the command line says so.
pub(crate) fn role() -> Option<Result<()>> {
    let mut args = env::args().skip(1);
    match &*args.next()? {
        ROLE => Some(fill(args)),
        task::ROLE => Some(task::run(args)),
        process::ROLE => Some(process::run(args)),
        name => storm::role(name, args),
    }
}

fn fill(mut args: impl Iterator<Item = String>) -> Result<()> {
    let bytes = args.next().context("no number of bytes")?.parse()?;
    let mut mapping = Mapping::new(bytes).with_context(|| format!("mapping {bytes} bytes"))?;
    pattern::fill(mapping.words_mut(), 0, 1);
    match pattern::verify(mapping.words(), 0, 1).first {
        None => Ok(()),
        Some(first) => bail!("memory of the process was damaged: {first}"),
    }
}
