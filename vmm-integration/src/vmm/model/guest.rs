// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model as a [`Guest`]: its allocations, its reporter, its programs.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use guest_agent::faulting::FaultingPlan;
use guest_driver::reporting::{Config, Reporter};
use guest_driver::virtio::balloon_driver::ReportingQueue;

use super::faulting::{self, Files};
use super::{Holdings, ModelConfig, ModelVm, ReporterThread};
use crate::frontend::Line;
use crate::guest::{Contents, Faulted, Guest};
use crate::guest_memory::Ram;

/// The order of the guest's allocations: page by page, as most programs do.
const ORDER: u8 = 0;

/// The model with a reporter and the contents of its memory.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use vmm_integration::guest::Guest;
/// use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelGuest};
///
/// let socket = "/run/vhost-device-balloon.sock".as_ref();
/// let guest = ModelGuest::start(socket, ModelConfig::new(GuestMemory::flat(1 << 30, 2)))?;
/// guest.set_reporting(true)?;
/// guest.alloc(1, 300 << 20, 0)?;
/// guest.expect_intact(1)?;
/// guest.free(1)?;
/// # Ok(())
/// # }
/// ```
pub struct ModelGuest {
    vm: ModelVm,
    holdings: Holdings,
    config: Config,
    reporting: Mutex<Reporting>,
    files: Mutex<Files>,
}

struct Reporting {
    /// Present until reporting is turned on for the first time.
    queue: Option<ReportingQueue<Ram, Line>>,
    /// Present from then on.
    thread: Option<ReporterThread>,
}

impl ModelGuest {
    /// Attaches a guest to the daemon at `socket`, with the reporter's default configuration.
    ///
    /// # Errors
    /// See [`ModelVm::start`].
    pub fn start(socket: &Path, config: ModelConfig) -> Result<Self> {
        let mut vm = ModelVm::start(socket, config)?;
        let queue = Some(vm.take_reporting()?);
        Ok(Self {
            holdings: Holdings::new(vm.mm(), vm.ram()),
            config: Config { zero_reports: vm.zero_reports()?, ..Config::default() },
            reporting: Mutex::new(Reporting { queue, thread: None }),
            files: Mutex::default(),
            vm,
        })
    }

    /// The guest's memory and its connection to the daemon.
    pub fn vm(&self) -> &ModelVm {
        &self.vm
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest for ModelGuest {
    fn describe(&self) -> String {
        let Config { tracker, holding, delay, .. } = self.config;
        format!(
            "Model of Linux 6.19's page allocator in {} MiB of real memory; free memory is \
             remembered by tracker {} and held by {holding:?}, and reported every {delay:?}",
            self.vm.managed_bytes() >> 20,
            tracker.name(),
        )
    }

    fn set_reporting(&self, on: bool) -> Result<()> {
        let mut reporting = lock(&self.reporting);
        if let Some(thread) = &reporting.thread {
            // In both cases, so that reporting is turned on from the same state.
            thread.suspend()?;
            if on {
                thread.resume();
            }
        } else if on {
            let queue = reporting.queue.take().context("the reporter has failed to start")?;
            let reporter = Reporter::new(Arc::clone(self.vm.mm()), self.config)?;
            reporting.thread = Some(ReporterThread::start(reporter, queue)?);
        }
        Ok(())
    }

    fn alloc(&self, id: u32, bytes: u64, generation: u16) -> Result<()> {
        self.holdings.alloc(id, bytes, ORDER, generation)
    }

    fn verify(&self, id: u32) -> Result<Contents> {
        let verdict = self.holdings.verify(id)?;
        Ok(Contents {
            checked_bytes: verdict.checked_bytes,
            lost_bytes: verdict.lost_bytes,
            first: verdict.first.map(|first| first.to_string()),
        })
    }

    fn free(&self, id: u32) -> Result<()> {
        self.holdings.free(id)
    }

    fn fault(&self, plan: FaultingPlan) -> Result<Faulted> {
        let mut files = lock(&self.files);
        files.ensure(&self.vm, plan)?;
        faulting::run(&self.vm, &files, plan)
    }

    fn used_bytes(&self) -> Result<u64> {
        Ok(self.vm.used_bytes())
    }

    fn resident_bytes(&self) -> Result<u64> {
        self.vm.resident_bytes()
    }

    fn memory(&self) -> Result<File> {
        self.vm.boot_memory()
    }

    fn vmm_pid(&self) -> Option<u32> {
        None
    }

    fn shut_down(self: Box<Self>) -> Result<String> {
        // In a variable of its own, or the lock would be held while the thread ends.
        let thread = lock(&self.reporting).thread.take();
        if let Some(thread) = thread {
            thread.stop().context("ending the reporter")?;
        }
        Ok(String::new())
    }
}

impl Drop for ModelGuest {
    fn drop(&mut self) {
        if let Some(thread) = &lock(&self.reporting).thread {
            thread.schedule().close();
        }
    }
}
