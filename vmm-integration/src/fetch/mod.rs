// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run needs and a machine may lack: packages, programs, a browser.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) mod apt;
pub mod browser;
mod devtools;
pub mod packages;
mod sysroot;

pub use sysroot::Sysroot;

/// What happens during the set-up, for whoever shows it.
#[derive(Clone, Debug, PartialEq)]
pub enum SetupEvent {
    /// Something begins; a text for a human.
    Step(String),
    /// Something is not as it was asked for, and the set-up goes on; a text for a human.
    Warning(String),
    /// A download begins.
    Download {
        /// How many packages.
        packages: usize,
        /// How large they are together.
        total_bytes: u64,
    },
    /// The download is this far.
    Progress {
        /// From 0 to 1.
        fraction: f64,
    },
    /// A package is about to be unpacked.
    Unpack {
        /// How many are done.
        done: usize,
        /// How many there are.
        total: usize,
    },
}

/// A program and the arguments that come before all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// What is started.
    pub program: PathBuf,
    /// Its first arguments.
    pub args: Vec<OsString>,
}

impl Tool {
    /// A command that runs the tool; more arguments may be added.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        command
    }
}

/// The folder for all that is fetched, built and cached: `target/guest` of the workspace.
pub fn guest_dir() -> PathBuf {
    // Not CARGO_TARGET_DIR: whoever builds into several folders still wants one download.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest")
}
