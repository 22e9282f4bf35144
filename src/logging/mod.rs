// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's log on standard error, which never makes another thread wait.
//!
//! A thread that logs puts a record in a bounded queue ([`Queue`]); one logger thread writes it. When
//! standard error is a pipe that is not read, the logger thread blocks, the queue fills, and further
//! records are counted as lost. A record is one line of at most [`record::MOST_BYTES`] bytes ([`Record`]).
//! Lines that come from one place in the source are limited in number, and those left out are counted.
//! Lines for systemd's journal have a priority in place of a time.

mod error_chain;
pub(crate) mod journal;
mod level;
mod logger;
mod queue;
pub(crate) mod rate_limit;
mod record;
mod sites;

pub(crate) use error_chain::error_chain;
pub(crate) use error_chain::report;
pub use level::LogLevel;
pub(crate) use logger::Logger;
pub(crate) use queue::Queue;
pub(crate) use record::Record;
