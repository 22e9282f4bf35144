// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the measurements share: a daemon with a guest, and a processor for each end.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use guest_driver::ram::GpaRange;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
pub(crate) const REPORTING: u16 = 2;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn spawn(args: &[&str]) -> Result<DaemonProcess> {
    let args = args.iter().map(Into::into).collect();
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    DaemonProcess::spawn(Path::new(BINARY), &options)
}

pub(crate) fn attach(daemon: &DaemonProcess) -> Result<Attachment> {
    let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd))?;
    Attachment::connect(&daemon.socket(), &ram, AttachOptions::default())
}

/// Both ends on a CPU each, if there are two: where the scheduler happens to put them would else
/// decide more than what is measured.
pub(crate) fn pin(pid: Option<u32>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    let Some(pid) = pid else { return Ok(sched_setaffinity(None, &set)?) };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task: i32 = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(task), &set)?;
    }
    Ok(())
}

/// The processors that this thread may use. It may use them again once this is dropped: what it
/// measures next, and the daemons that it starts, must not be left on one.
pub(crate) struct Processors(CpuSet);

impl Processors {
    pub(crate) fn kept() -> Result<Self> {
        Ok(Self(sched_getaffinity(None)?))
    }

    /// Whether both ends can have one each.
    pub(crate) fn are_two(&self) -> bool {
        self.0.is_set(0) && self.0.is_set(1)
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        // Where it fails there is nothing to be done, and the figures say so.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Of two figures.
#[allow(clippy::cast_precision_loss)] // for people to read
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// The same memory in as few ranges as the chain can be put into.
pub(crate) fn merged(chain: &[GpaRange]) -> Vec<GpaRange> {
    let mut ranges = chain.to_vec();
    ranges.sort_by_key(|range| range.start());
    let runs = ranges.chunk_by(|a, b| a.end() == Some(b.start()));
    runs.filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some(GpaRange::between(first.start(), last.end()?))
    })
    .collect()
}
