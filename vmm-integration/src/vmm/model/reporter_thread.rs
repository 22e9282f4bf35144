// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter in real time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use guest_driver::reporting::{PassStats, Reporter, Schedule};
use guest_driver::virtio::balloon_driver::{ReportingCounters, ReportingQueue};

use crate::frontend::Line;
use crate::guest_memory::Ram;

/// The name of the thread, by which it is found among those of the process.
const NAME: &str = "reporter";

/// Passes that a reporter may need to report all that is free before it is suspended.
const LAST_PASSES: usize = 64;

/// A reporter that makes passes on a thread of its own, each when it is due. While nothing is freed
/// that needs reporting the thread sleeps.
pub struct ReporterThread {
    schedule: Arc<Schedule>,
    passes: Arc<AtomicU64>,
    working: Arc<Mutex<Working>>,
    thread: JoinHandle<()>,
}

/// Locked during a pass.
struct Working {
    reporter: Reporter,
    queue: ReportingQueue<Ram, Line>,
    stats: PassStats,
}

/// The reporter and its counts after [`ReporterThread::stop`].
pub struct Ended {
    /// The reporter.
    pub reporter: Reporter,
    /// The queue, with reports that the device has not acknowledged.
    pub queue: ReportingQueue<Ram, Line>,
    /// The sum of what all passes did.
    pub stats: PassStats,
    /// The number of passes.
    pub passes: u64,
}

impl Ended {
    /// What was reported.
    pub fn counters(&self) -> ReportingCounters {
        self.queue.counters()
    }
}

impl ReporterThread {
    /// Starts the thread, for a reporter that uses the real clock.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(reporter: Reporter, queue: ReportingQueue<Ram, Line>) -> Result<Self> {
        let schedule = Arc::clone(reporter.schedule());
        let waiting = Arc::clone(&schedule);
        let passes = Arc::new(AtomicU64::new(0));
        let begun = Arc::clone(&passes);
        let working = Working { reporter, queue, stats: PassStats::default() };
        let working = Arc::new(Mutex::new(working));
        let shared = Arc::clone(&working);
        let thread = thread::Builder::new().name(NAME.into()).spawn(move || {
            while waiting.wait() {
                // Ahead of the pass: when the schedule is idle, all passes are counted.
                begun.fetch_add(1, Ordering::Relaxed);
                let mut working = lock(&shared);
                let Working { reporter, queue, stats } = &mut *working;
                *stats += reporter.pass(queue);
            }
        });
        let thread = thread.context("cannot start the reporter's thread")?;
        Ok(Self { schedule, passes, working, thread })
    }

    /// The schedule of the next pass.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The number of passes begun so far.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// Reports all that is free, then forgets what is freed later.
    ///
    /// # Errors
    /// When there is still something to report after many passes.
    pub fn suspend(&self) -> Result<()> {
        let mut working = lock(&self.working);
        let Working { reporter, queue, stats } = &mut *working;
        reporter.suspend();
        for _ in 0..LAST_PASSES {
            if !reporter.has_work() {
                return Ok(());
            }
            *stats += reporter.pass(queue);
        }
        ensure!(!reporter.has_work(), "the reporter still has work after {LAST_PASSES} passes");
        Ok(())
    }

    /// Reports again after [`ReporterThread::suspend`], beginning with all free memory.
    pub fn resume(&self) {
        lock(&self.working).reporter.resume();
    }

    /// Ends the thread after the pass in progress. When the daemon is gone and reports wait without
    /// a limit, this blocks until the guest is reconnected or the [`super::ModelVm`] is dropped.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub fn stop(self) -> Result<Ended> {
        self.schedule.close();
        ensure!(self.thread.join().is_ok(), "the reporter's thread panicked");
        let working = Arc::into_inner(self.working).context("the reporter is still in use")?;
        let Working { reporter, queue, stats } =
            working.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Ended { reporter, queue, stats, passes: self.passes.load(Ordering::Relaxed) })
    }
}

fn lock(working: &Mutex<Working>) -> MutexGuard<'_, Working> {
    working.lock().unwrap_or_else(PoisonError::into_inner)
}
