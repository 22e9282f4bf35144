// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packages, programs and a browser that tests need and a machine may lack, and what runs in a guest.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) mod apt;
pub mod browser;
pub(crate) mod build;
mod devtools;
mod install;
pub(crate) mod packages;
pub mod prometheus;
pub(crate) mod source;
mod sysroot;
mod update;
mod wrap;

pub use sysroot::Sysroot;
pub use update::update_packages;

/// Progress of the set-up, to be shown.
#[derive(Clone, Debug, PartialEq)]
pub enum SetupEvent {
    /// A step begins; its text.
    Step(String),
    /// The set-up continues with something other than asked for; the reason.
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
    /// A file of a program is compiled.
    Compile {
        /// How many are done.
        done: usize,
        /// How many there are, about.
        about: usize,
    },
}

/// A program and the arguments that come before all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The program's path.
    pub program: PathBuf,
    /// The first arguments.
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
    // Not CARGO_TARGET_DIR: several target folders share one download.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest")
}
