// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The demo with the model as the guest.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::guest::Guest;
use vmm_integration::measure::host::Sampler;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelGuest};

use super::measure::{self, Plan, SAMPLE_EVERY, WIND_UP};
use super::options::Options;
use super::run::{Device, Run};

const CPUS: usize = 2;

/// Runs the demo once.
///
/// # Errors
/// If the model or the daemon fails, or Ctrl-C was pressed.
pub(super) fn run(binary: &Path, options: &Options) -> Result<Run> {
    let mut daemon = DaemonProcess::spawn(binary, &DaemonOptions::default())?;
    let memory = GuestMemory::flat(options.memory << 20, CPUS);
    let guest = Arc::new(ModelGuest::start(&daemon.socket(), ModelConfig::new(memory))?);
    // In whole sections.
    let memory_bytes = guest.vm().managed_bytes();
    let described = guest.describe();
    eprintln!("{}: {described}", Device::Daemon);

    let asked = Arc::clone(&guest);
    let sampler = Sampler::start(SAMPLE_EVERY, guest.memory()?, move || asked.used_bytes().ok());
    let plan = Plan { device: Device::Daemon, memory_bytes, rounds: options.rounds };
    let outcome = measure::watch(&*guest, sampler, plan)?;
    // Hangs up, which is when the daemon sums up.
    Box::new(Arc::into_inner(guest).context("the guest is still in use")?).shut_down()?;
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
