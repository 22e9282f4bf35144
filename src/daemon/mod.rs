// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process: the event loop of the main thread, its socket, its signals, and its ends.

mod announcer;
mod emergency;
mod error;
mod event_loop;
mod operators;
mod resume;
mod sigbus;
mod signals;
mod socket;
mod waiting;
mod watchdog;

pub use error::DaemonError;
pub use event_loop::run;
pub(crate) use event_loop::serve;
