// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use guest_driver::reporting::{PassStats, Reporter, Schedule};
use guest_driver::virtio::balloon_driver::{ReportingCounters, ReportingQueue};

use crate::frontend::Line;
use crate::guest_memory::Ram;

/// The name of the thread, by which it is found among those of the process.
const NAME: &str = "reporter";

/// A reporter that makes passes on a thread of its own, each when it is due. While nothing is freed
/// that needs reporting the thread sleeps.
pub struct ReporterThread {
    schedule: Arc<Schedule>,
    passes: Arc<AtomicU64>,
    thread: JoinHandle<Ended>,
}

/// What a reporter leaves behind.
pub struct Ended {
    /// Itself.
    pub reporter: Reporter,
    /// With what the device may have of it still.
    pub queue: ReportingQueue<Ram, Line>,
    /// What its passes did, in sum.
    pub stats: PassStats,
    /// How many there were.
    pub passes: u64,
}

impl Ended {
    /// What was reported.
    pub fn counters(&self) -> ReportingCounters {
        self.queue.counters()
    }
}

impl ReporterThread {
    /// Starts it, for a reporter by the real clock.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start(mut reporter: Reporter, mut queue: ReportingQueue<Ram, Line>) -> Result<Self> {
        let schedule = Arc::clone(reporter.schedule());
        let waiting = Arc::clone(&schedule);
        let passes = Arc::new(AtomicU64::new(0));
        let begun = Arc::clone(&passes);
        let thread = thread::Builder::new().name(NAME.into()).spawn(move || {
            let mut stats = PassStats::default();
            while waiting.wait() {
                // Ahead of it: when the schedule is idle, all that there were are counted.
                begun.fetch_add(1, Ordering::Relaxed);
                stats += reporter.pass(&mut queue);
            }
            Ended { reporter, queue, stats, passes: begun.load(Ordering::Relaxed) }
        });
        Ok(Self { schedule, passes, thread: thread.context("cannot start the reporter's thread")? })
    }

    /// When its next pass is due, and whether there is any.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// How many passes it has begun so far.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// Ends it behind the pass that is under way. If the daemon is gone and reports wait as long as
    /// it takes, that waits for the next one, or until the [`super::ModelVm`] is dropped.
    ///
    /// # Errors
    /// Where it has panicked.
    pub fn stop(self) -> Result<Ended> {
        self.schedule.close();
        match self.thread.join() {
            Ok(ended) => Ok(ended),
            Err(_) => bail!("the reporter's thread panicked"),
        }
    }
}
