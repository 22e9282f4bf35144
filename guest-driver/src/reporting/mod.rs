// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter: finds free memory that the host does not know of, holds it, reports it, and releases
//! it (Linux's `mm/page_reporting.c` for [`TrackerKind::ReportedFlag`] with [`Holding::Pull`]).
//!
//! Two questions of November 2019 are values here: how to remember what still needs reporting
//! ([`TrackerKind`]), and how to keep reported pages from being allocated meanwhile ([`Holding`]).
//!
//! A pass is made when it is due: one delay after the first free that needs reporting, by a [`Clock`]
//! that is the machine's or stands still until a test moves it ([`Schedule`]).
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use guest_driver::page_alloc::{Geometry, Layout, Mm, PfnRange};
//! use guest_driver::reporting::{Config, ReportError, ReportSink, Reporter};
//!
//! /// Acknowledges everything.
//! struct Host;
//!
//! impl ReportSink for Host {
//!     fn report(&mut self, _: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
//!         Ok(())
//!     }
//!     fn settle(&mut self) -> bool {
//!         true
//!     }
//!     fn capacity(&self) -> usize {
//!         32
//!     }
//! }
//!
//! // A guest with one CPU and one section, all of it free and unknown to the host.
//! let mm = Arc::new(Mm::new(&Layout::flat(Geometry::LINUX, 1, 1)));
//! let mut reporter = Reporter::new(Arc::clone(&mm), Config::DEFAULT)?;
//! let mut pages = 0;
//! while reporter.has_work() {
//!     pages += reporter.pass(&mut Host).pages;
//! }
//! assert_eq!(pages, mm.zone(guest_driver::page_alloc::ZoneId(0)).free_pages());
//! # Ok::<(), guest_driver::reporting::AlreadyRegistered>(())
//! ```
//!
//! | file | |
//! |---|---|
//! | `config` | what can be chosen |
//! | `tracker` | ways to remember what needs reporting, a file each |
//! | `hold` | the two ways to hold pages |
//! | `batch` | held pages on their way to the sink |
//! | `reporter` | the pass |
//! | `schedule`, `clock` | when the next one is due |

mod batch;
mod clock;
mod config;
mod hold;
mod reporter;
mod schedule;
mod sink;
mod tracker;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

pub use batch::PassStats;
pub use clock::{Clock, RealClock, VirtualClock};
pub use config::{Config, Holding, HotplugLock, OnBusy, OnTimeout, WatermarkGuard, ZeroReports};
pub use hold::hold_while;
pub use reporter::{AlreadyRegistered, Memory, Reporter};
pub use schedule::Schedule;
pub use sink::{ReportError, ReportSink};
pub use tracker::kind::{TrackerFlaw, TrackerKind};
