// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The statistics of the guest's CPUs in real time.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use guest_driver::page_alloc::Mm;

/// Updates the statistics of every CPU at an interval until it is dropped ([`Mm::update_vmstat`]),
/// so that pages on per-CPU lists return to their zones.
pub(super) struct VmstatThread {
    /// Dropped to end the thread.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl VmstatThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(mm: Arc<Mm>, cpus: usize, every: Duration) -> Result<Self> {
        let (running, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("vmstat".into()).spawn(move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                for cpu in 0..cpus {
                    mm.update_vmstat(cpu);
                }
            }
        });
        let thread = Some(thread.context("cannot start the thread of the guest's statistics")?);
        Ok(Self { running: Some(running), thread })
    }
}

impl Drop for VmstatThread {
    fn drop(&mut self) {
        self.running = None;
        // A panic in it has been printed.
        self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::host::wait_until;
    use guest_driver::page_alloc::{AllocRequest, Geometry, Layout, ZoneId};

    #[test]
    fn pages_of_a_resting_cpu_return_to_the_zone() {
        let mm = Arc::new(Mm::new(&Layout::flat(Geometry::LINUX, 1, 16)));
        let pfns: Vec<_> =
            (0..20_000).map(|_| mm.alloc(0, AllocRequest::movable(0)).unwrap()).collect();
        pfns.into_iter().for_each(|pfn| mm.free(0, pfn));
        let zone = mm.zone(ZoneId(0));
        let on_lists = || zone.managed_pages() - zone.free_pages();
        assert!(on_lists() >= 20_000);
        let every = Duration::from_millis(1);
        let vmstat = VmstatThread::start(Arc::clone(&mm), 1, every).unwrap();
        wait_until(Duration::from_secs(60), every, || match on_lists() {
            pages if pages <= zone.watermarks().low => Ok(()),
            pages => Err(format!("{pages} pages are on per-CPU lists")),
        })
        .unwrap();
        drop(vmstat);
        assert_eq!(Arc::strong_count(&mm), 1);
    }
}
