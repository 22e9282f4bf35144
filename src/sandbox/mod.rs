// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What confines the process once its sockets are open: it keeps what it has, and gets nothing else.
//!
//! | file | what it takes away |
//! |---|---|
//! | `namespaces` | the file systems and the networks of the machine |
//! | `privileges` | capabilities, and gaining any by executing a program |
//! | `paths` | files: [Landlock](https://docs.kernel.org/userspace-api/landlock.html) |
//! | `calls` | system calls, and arguments of them: seccomp (`seccomp(2)`) |
//! | `worker` | more of them, from the thread that reads what a guest writes |
//!
//! Entered by the one thread that there is, so that each thread to come is confined from its start; the worker
//! of a session goes on from there. A part that the kernel lacks, or does not allow, is named in the log.

mod calls;
mod namespaces;
mod paths;
mod privileges;
pub(crate) mod worker;

use std::io;
use std::os::fd::BorrowedFd;

use clap::ValueEnum;
use log::{debug, info, warn};
use rustix::param::page_size;

/// What happens to a system call that the daemon does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sandbox {
    /// the kernel ends the daemon by SIGSYS
    #[default]
    Strict,
    /// the kernel logs it and carries it out; the other parts of the sandbox hold
    Log,
    /// no part of the sandbox is in force
    None,
}

/// Why the sandbox cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}; --sandbox none starts the daemon without its sandbox")]
pub(crate) struct SandboxError {
    what: &'static str,
    source: io::Error,
}

impl SandboxError {
    fn of<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self { what, source: io::Error::other(source) }
    }
}

/// A part that is not in force, and why.
struct Missing {
    part: &'static str,
    why: String,
    /// The kernel has it, and does not let this process use it.
    refused: bool,
}

/// Confines the process for good, except that it may remove files from `folders`.
///
/// # Errors
/// Where a part fails that the kernel has.
pub(crate) fn enter(sandbox: Sandbox, folders: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
    if sandbox == Sandbox::None {
        warn!("the sandbox is off (--sandbox none): this daemon has all rights of its user");
        return Ok(());
    }
    // Each asks the kernel the first time, and keeps the answer: the standard library whether it has `statx`.
    let _ = page_size();
    let _ = std::fs::metadata("/");
    let mut missing = Vec::new();
    missing.extend(namespaces::enter());
    privileges::drop_all()?;
    missing.extend(paths::deny(folders)?);
    match calls::limit(sandbox == Sandbox::Strict, folders)? {
        Some(part) => missing.push(part),
        None => worker::process_is_limited(sandbox),
    }
    for Missing { part, why, refused } in missing {
        match refused {
            true => info!("sandbox without {part}: {why}"),
            false => warn!("sandbox without {part}: {why}"),
        }
    }
    match sandbox {
        Sandbox::Log => warn!("the sandbox logs system calls that it would deny (--sandbox log)"),
        _ => debug!("in the sandbox"),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
