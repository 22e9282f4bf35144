//! The reporter in real time.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_driver::reporting::Reporter;
use guest_driver::virtio::balloon_driver::{ReportingCounters, ReportingQueue};

use crate::frontend::Line;
use crate::ram::Ram;

/// A reporter that makes passes on a thread of its own, `delay` apart, when there is something to
/// report. Linux, whose frees start the clock, comes later by up to that.
pub struct ReporterThread {
    /// Dropped to end the thread.
    stop: Sender<()>,
    thread: JoinHandle<(Reporter, ReportingQueue<Ram, Line>)>,
}

impl ReporterThread {
    /// Starts it. The first pass comes after a delay.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start(
        mut reporter: Reporter,
        mut queue: ReportingQueue<Ram, Line>,
        delay: Duration,
    ) -> Result<Self> {
        let (stop, stopped) = channel::<()>();
        let thread = thread::Builder::new().name("reporter".into()).spawn(move || {
            while stopped.recv_timeout(delay) == Err(RecvTimeoutError::Timeout) {
                if reporter.has_work() {
                    reporter.pass(&mut queue);
                }
            }
            (reporter, queue)
        });
        Ok(Self { stop, thread: thread.context("cannot start the reporter's thread")? })
    }

    /// Ends it behind the pass that is under way. If the daemon is gone that waits for the next
    /// one, or until the [`super::ModelVm`] is dropped.
    ///
    /// # Errors
    /// Where it has panicked.
    pub fn stop(self) -> Result<(Reporter, ReportingCounters)> {
        drop(self.stop);
        match self.thread.join() {
            Ok((reporter, queue)) => Ok((reporter, queue.counters())),
            Err(_) => bail!("the reporter's thread panicked"),
        }
    }
}
