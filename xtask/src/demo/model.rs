// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The demo with the model as the guest.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use guest_driver::reporting::{Config, Reporter};
use guest_driver::virtio::balloon_driver::ReportingQueue;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::Line;
use vmm_integration::guest_memory::Ram;
use vmm_integration::measure::host::Sampler;
use vmm_integration::vmm::model::{
    GuestMemory, Holdings, ModelConfig, ModelVm, ReporterThread, used_bytes,
};

use super::Options;
use super::measure::{self, Device, Guest, Run, SAMPLE_EVERY, WIND_UP};

/// What the guest uses it allocates page by page, as most programs do.
const ORDER: u8 = 0;
const CPUS: usize = 2;

/// The model with what it needs to report.
struct ModelGuest {
    vm: ModelVm,
    holdings: Holdings,
    config: Config,
    /// Until the reporter is started.
    queue: Mutex<Option<ReportingQueue<Ram, Line>>>,
    thread: Mutex<Option<ReporterThread>>,
}

/// Runs the demo once.
///
/// # Errors
/// If the model or the daemon fails, or Ctrl-C was pressed.
pub(super) fn run(binary: &Path, options: &Options) -> Result<Run> {
    let mut daemon = DaemonProcess::spawn(binary, &DaemonOptions::default())?;
    let memory = GuestMemory::flat(options.memory << 20, CPUS);
    let mut vm = ModelVm::start(&daemon.socket(), ModelConfig::new(memory))?;
    // In whole sections.
    let memory_bytes = vm.managed_bytes();
    let config = Config::default();
    let described = format!(
        "Model of Linux 6.19's page allocator in {} MiB of real memory; free memory is remembered \
         by tracker {} and held by {:?}, and reported every {:?}",
        memory_bytes >> 20,
        config.tracker.name(),
        config.holding,
        config.delay,
    );
    eprintln!("{}: {described}", Device::Daemon);

    let guest = ModelGuest {
        holdings: Holdings::new(vm.mm(), vm.ram()),
        queue: Mutex::new(Some(vm.take_reporting()?)),
        thread: Mutex::new(None),
        config,
        vm,
    };
    let mm = Arc::clone(guest.vm.mm());
    let sampler =
        Sampler::start(SAMPLE_EVERY, guest.vm.boot_memory()?, move || Some(used_bytes(&mm)));
    let outcome = measure::watch(&guest, sampler, memory_bytes, options.rounds)?;
    if let Some(thread) = take(&guest.thread) {
        thread.stop()?;
    }
    // Hangs up, which is when the daemon sums up.
    drop(guest);
    let summary = daemon.session_summary(WIND_UP)?;
    daemon.terminate(WIND_UP)?;
    Ok(Run {
        device: Device::Daemon,
        guest: described,
        memory_bytes,
        rounds: outcome.rounds,
        reports: Some(summary.chains),
        ranges: summary.ranges,
        discard_calls: summary.discard_calls,
        verified_bytes: outcome.verified_bytes,
        lost_bytes: outcome.lost_bytes,
        curve: outcome.curve,
    })
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Guest for ModelGuest {
    fn start_reporting(&self) -> Result<()> {
        let queue = take(&self.queue).context("it reports already")?;
        let reporter = Reporter::new(Arc::clone(self.vm.mm()), self.config)?;
        let thread = ReporterThread::start(reporter, queue)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn alloc(&self, name: u32, bytes: u64, generation: u16) -> Result<()> {
        self.holdings.alloc(name, bytes, ORDER, generation)
    }

    fn verify(&self, name: u32) -> Result<(u64, u64)> {
        let verdict = self.holdings.verify(name)?;
        Ok((verdict.checked_bytes, verdict.lost_bytes))
    }

    fn free(&self, name: u32) -> Result<()> {
        self.holdings.free(name)
    }

    fn resident_bytes(&self) -> Result<u64> {
        self.vm.resident_bytes()
    }
}
