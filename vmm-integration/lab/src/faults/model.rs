// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model as the guest that meets a fault.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_driver::page_alloc::ZoneId;
use guest_driver::reporting::{Config, Reporter};
use rustix::process::Signal;

use super::device::FaultyDevice;
use super::inject::{self, Tampering};
use super::outcome::Met;
use super::plan::{Fault, FaultKind, FaultPlan, Injector};
use super::queue;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{GuestMemory, Holdings, ModelConfig, ModelVm, ReporterThread};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 512 * MIB;
const KEPT: u32 = 100;
const KEPT_BYTES: u64 = 32 * MIB;
const ROUND_BYTES: u64 = 48 * MIB;
const ROUNDS: u16 = 12;
const DELAY: Duration = Duration::from_millis(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A guest that could go on has gone on by then.
const PATIENCE: Duration = Duration::from_secs(20);
/// A guest that does nothing for so long does nothing any more.
const QUIET: Duration = Duration::from_secs(2);

/// Injects a fault, into the faulty device or the daemon, with the model as the guest.
///
/// # Errors
/// If it cannot be injected, or another error occurs.
pub fn meet(fault: &Fault, daemon: &Path) -> Result<Met> {
    match (fault.kind.injector(), fault.kind) {
        (_, FaultKind::ReorderAcks) => queue::reorder(fault),
        (Injector::FaultyDevice, _) => faulty_device(fault),
        (_, FaultKind::DiscardFails | FaultKind::DiscardSlow) => tampered(fault, daemon),
        (_, FaultKind::KillDaemon) => killed(fault, daemon),
        (_, FaultKind::StopDaemon) => stopped(fault, daemon),
        _ => queue::meet(fault, daemon),
    }
}

/// A guest whose reporter runs.
struct Guest {
    vm: ModelVm,
    holdings: Holdings,
    reporter: ReporterThread,
}

impl Guest {
    fn start(socket: &Path) -> Result<Self> {
        let memory = GuestMemory::flat(MEMORY, 2);
        let mut vm = ModelVm::start(socket, ModelConfig::new(memory))?;
        let holdings = Holdings::new(vm.mm(), vm.ram());
        let config = Config { delay: DELAY, ..Config::default() };
        let reporter = Reporter::new(Arc::clone(vm.mm()), config)?;
        let reporter = ReporterThread::start(reporter, vm.take_reporting()?)?;
        holdings.alloc(KEPT, KEPT_BYTES, 0, 1)?;
        Ok(Self { vm, holdings, reporter })
    }

    /// Memory is used again as soon as it is free, while the reporter is at it; returns what was
    /// lost, in bytes.
    fn churn(&self) -> Result<u64> {
        let mut lost = 0;
        for round in 0..ROUNDS {
            let (name, other) = (u32::from(round % 2), u32::from((round + 1) % 2));
            let order = [9, 0, 10][usize::from(round) % 3];
            self.holdings.alloc(name, ROUND_BYTES, order, round)?;
            if round > 0 {
                lost += self.holdings.verify(other)?.lost_bytes;
                self.holdings.free(other)?;
            }
            lost += self.holdings.verify(name)?.lost_bytes;
        }
        let last = u32::from((ROUNDS - 1) % 2);
        lost += self.holdings.verify(last)?.lost_bytes;
        self.holdings.free(last)?;
        Ok(lost + self.holdings.verify(KEPT)?.lost_bytes)
    }

    fn drain(&self) {
        (0..self.vm.mm().zone_count()).for_each(|zone| self.vm.mm().drain_all(ZoneId(zone)));
    }

    /// Waits until all that is free has been given back; says whether it was.
    fn gives_all_back(&self, patience: Duration) -> bool {
        self.drain();
        wait_until(patience, LOOK_EVERY, || match self.vm.resident_bytes() {
            Ok(bytes) if bytes <= KEPT_BYTES + 4 * MIB => Ok(()),
            Ok(bytes) => Err(format!("{} MiB are resident", bytes / MIB)),
            Err(error) => Err(format!("{error:#}")),
        })
        .is_ok()
    }

    fn isolated_blocks(&self) -> u64 {
        self.vm.mm().zone(ZoneId(0)).isolated_blocks()
    }

    /// Shuts it down, and returns whether its reporter still waited for an acknowledgement although the
    /// guest was idle.
    fn end(self) -> Result<bool> {
        // What is reported is held, and so isolated.
        let comes_to_rest = wait_until(QUIET, LOOK_EVERY, || match self.isolated_blocks() {
            0 => Ok(()),
            blocks => Err(format!("{blocks} pageblocks are held for a report")),
        });
        let Self { vm, holdings: _, reporter } = self;
        drop(vm);
        let timeouts = reporter.stop()?.counters().timeouts;
        Ok(comes_to_rest.is_err() && timeouts > 0)
    }
}

fn faulty_device(fault: &Fault) -> Result<Met> {
    let device = FaultyDevice::start(FaultPlan::new(vec![fault.clone()])?)?;
    let guest = Guest::start(&device.socket())?;
    let lost_bytes = guest.churn()?;
    let given_back = guest.gives_all_back(PATIENCE / 4);
    let waits = guest.end()?;
    let served = device.served();
    ensure!(served.faults > 0, "the fault never happened: {served:?}");
    let fate = if given_back { "all free memory was given back" } else { "reporting stopped" };
    let seen = format!("{} chains, {fate}", served.chains);
    Ok(Met { faults: served.faults, lost_bytes, waits, seen, stack: Vec::new() })
}

/// What the daemon did and did not give back, when its guest is gone.
fn skipped(daemon: &DaemonProcess) -> Result<(u64, u64)> {
    let summary = daemon.session_summary(PATIENCE)?;
    Ok((summary.bytes_discarded, summary.skipped_bytes.values().sum()))
}

fn tampered(fault: &Fault, daemon: &Path) -> Result<Met> {
    let daemon = inject::start(fault, daemon)?;
    let guest = Guest::start(&daemon.socket())?;
    let tampering = Tampering::start(daemon.pid(), fault)?;
    let lost_bytes = guest.churn()?;
    let given_back = guest.gives_all_back(PATIENCE);
    drop(tampering);
    // What could not be given back stays with the host until it is reported again.
    ensure!(given_back || fault.kind == FaultKind::DiscardFails, "memory was not given back");
    let waits = guest.end()?;
    let (discarded, kept) = skipped(&daemon)?;
    if fault.kind == FaultKind::DiscardFails {
        ensure!(kept > 0, "no discard failed: {}", daemon.log());
    }
    let seen =
        format!("{} MiB given back, {} MiB stayed with the host", discarded / MIB, kept / MIB);
    Ok(Met { faults: fault.times.max(1), lost_bytes, waits, seen, stack: Vec::new() })
}

/// Frees memory and waits until its report is with a daemon that does nothing.
fn report_to_a_stopped_daemon(guest: &Guest, daemon: &mut DaemonProcess) -> Result<()> {
    ensure!(guest.gives_all_back(PATIENCE), "the guest does not come to rest");
    guest.holdings.alloc(0, ROUND_BYTES, 9, 7)?;
    daemon.signal(Signal::STOP)?;
    guest.holdings.free(0)?;
    guest.drain();
    wait_until(PATIENCE, LOOK_EVERY, || {
        if guest.isolated_blocks() > 0 { Ok(()) } else { Err("nothing is reported".to_owned()) }
    })
}

fn killed(fault: &Fault, binary: &Path) -> Result<Met> {
    let mut daemon = inject::start(fault, binary)?;
    let mut guest = Guest::start(&daemon.socket())?;
    let mut lost_bytes = 0;
    for _ in 0..fault.times.max(1) {
        report_to_a_stopped_daemon(&guest, &mut daemon)?;
        daemon.kill()?;
        // Nobody serves the guest for as long as that, and it goes on all the same.
        thread::sleep(Duration::from_millis(fault.millis()));
        lost_bytes += guest.holdings.verify(KEPT)?.lost_bytes;
        daemon = inject::start(fault, binary)?;
        guest.vm.reconnect(&daemon.socket()).context("the daemon was started again")?;
        ensure!(
            guest.gives_all_back(PATIENCE),
            "the next daemon did not carry out the report in flight"
        );
    }
    lost_bytes += guest.churn()?;
    let given_back = guest.gives_all_back(PATIENCE);
    let waits = guest.end()?;
    if !given_back {
        bail!("memory was not given back after the daemon was killed");
    }
    let seen = "the next daemon carried out the report in flight".to_owned();
    Ok(Met { faults: fault.times.max(1), lost_bytes, waits, seen, stack: Vec::new() })
}

fn stopped(fault: &Fault, binary: &Path) -> Result<Met> {
    let mut daemon = inject::start(fault, binary)?;
    let guest = Guest::start(&daemon.socket())?;
    report_to_a_stopped_daemon(&guest, &mut daemon)?;
    thread::sleep(Duration::from_millis(fault.millis()));
    let mut lost_bytes = guest.holdings.verify(KEPT)?.lost_bytes;
    let held = guest.isolated_blocks();
    ensure!(held > 0, "the guest released pages without an acknowledgement");
    daemon.signal(Signal::CONT)?;
    let given_back = guest.gives_all_back(PATIENCE);
    lost_bytes += guest.churn()?;
    let waits = guest.end()?;
    ensure!(given_back, "memory was not given back after the daemon went on");
    let seen = format!("{held} pageblocks stayed isolated for {} ms", fault.millis());
    Ok(Met { faults: 1, lost_bytes, waits, seen, stack: Vec::new() })
}
