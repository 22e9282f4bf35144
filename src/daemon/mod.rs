// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process: the event loop of the main thread, its socket, its signals, and its ends.

mod announcer;
mod embedded;
mod emergency;
mod error;
mod event_loop;
mod made;
mod operators;
mod process;
mod resume;
mod serve;
mod service;
mod sigbus;
mod signals;
mod socket;
mod waiting;
mod watchdog;

use std::sync::Arc;

pub use embedded::{Embedded, StopHandle};
pub use error::DaemonError;

use self::error::{Failure, resources};
use self::process::{Place, Process};
use crate::cli::Config;
use crate::logging::Logger;
use crate::wake::Wake;

/// Is the daemon, in a process of its own: serves until SIGTERM, SIGINT or SIGQUIT. Returns whether
/// the next daemon goes on with the frontend.
///
/// Called before anything is opened and before any thread starts.
pub(crate) fn run(config: &Config, logger: &Logger) -> Result<bool, Failure> {
    let place = Place::take(config)?;
    let process = Process::of_program(&place, logger)?;
    let end = Wake::new().map_err(resources("create an eventfd"))?;
    serve::serve(config, place, process, Arc::new(end))
}
