// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypotheses about the device: the daemon, and faults, with the model and with Linux as the guest.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use guest_driver::reporting::{Config, Reporter};
use guest_driver::virtio::balloon::{QueueNumbering, feature};

use super::seen::Seen;
use crate::faults;
use crate::faults::device::FaultyDevice;
use crate::faults::outcome::{Judgement, Met};
use crate::faults::plan::{Fault, FaultKind, FaultPlan};
use crate::store::VerdictKind;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::AttachOptions;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{GuestMemory, Holdings, ModelConfig, ModelVm};
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 512 * MIB;
const USED: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Injects a fault, with the model and with Linux as the guest.
pub(super) fn fault(kind: FaultKind, daemon: &Path, toolbox: Option<&Toolbox>) -> Result<Seen> {
    let fault = Fault { after: 2, ..Fault::new(kind) };
    let mut worst = VerdictKind::Survived;
    let mut seen = Vec::new();
    let mut judge = |place: &str, met: Met| -> Result<()> {
        match met.judge(kind) {
            Judgement::Survived => {}
            Judgement::AsDocumented => worst = VerdictKind::AsDocumented,
            Judgement::Failed => return Err(anyhow!("{place}: {kind}: {met}")),
        }
        seen.push(format!("{place}: {met}"));
        Ok(())
    };
    judge("the model", faults::model::meet(&fault, daemon)?)?;
    if let Some(toolbox) = toolbox {
        judge("Linux", faults::linux::meet(&fault, toolbox, daemon)?)?;
    }
    Ok((worst, seen.join("; ")))
}

/// Uses 128 MiB in a guest, frees and reports them; returns the bytes that the host still holds.
fn use_and_report(daemon: &DaemonProcess, attach: AttachOptions) -> Result<u64> {
    let config = ModelConfig { attach, ..ModelConfig::new(GuestMemory::flat(MEMORY, 1)) };
    let mut vm = ModelVm::start(&daemon.socket(), config)?;
    let holdings = Holdings::new(vm.mm(), vm.ram());
    let mut queue = vm.take_reporting()?;
    let mut reporter = Reporter::new(Arc::clone(vm.mm()), Config::default())?;
    holdings.alloc(USED, 128 * MIB, 9, 1)?;
    ensure!(holdings.verify(USED)?.lost_bytes == 0, "memory in use was damaged");
    holdings.free(USED)?;
    (0..vm.mm().zone_count())
        .for_each(|zone| vm.mm().drain_all(guest_driver::page_alloc::ZoneId(zone)));
    while reporter.has_work() {
        ensure!(!reporter.pass(&mut queue).failed, "a report was not acknowledged");
    }
    vm.resident_bytes()
}

/// Reports with both numberings of queues, with each set of features that moves the reporting queue.
pub(super) fn numberings(daemon: &Path) -> Result<Seen> {
    let more = || DaemonOptions {
        args: ["--statistics", "--free-page-hints"].map(Into::into).into(),
        ..DaemonOptions::default()
    };
    let mut seen = Vec::new();
    let mut failed = false;
    for (name, options) in [("", DaemonOptions::default()), (" with statistics and hints", more())]
    {
        for numbering in [QueueNumbering::Linux, QueueNumbering::Specification] {
            let process = DaemonProcess::spawn(daemon, &options)?;
            let attach = AttachOptions { numbering, ..AttachOptions::default() };
            let stays = use_and_report(&process, attach);
            failed |= !matches!(stays, Ok(0));
            let came = stays
                .map_or_else(|error| format!("{error:#}"), |stays| format!("{stays} bytes stay"));
            seen.push(format!("{numbering:?}{name}: {came}"));
        }
    }
    let kind = if failed { VerdictKind::Shown } else { VerdictKind::Survived };
    Ok((kind, format!("128 MiB used and reported in the model: {}", seen.join(", "))))
}

/// Reports to a paused daemon, which acknowledges and discards nothing.
pub(super) fn inhibited(daemon: &Path) -> Result<Seen> {
    let options = DaemonOptions { args: vec!["--paused".into()], ..DaemonOptions::default() };
    let process = DaemonProcess::spawn(daemon, &options)?;
    let stays = use_and_report(&process, AttachOptions::default())?;
    let summary = process.session_summary(PATIENCE)?;
    let skipped: u64 = summary.skipped_bytes.values().sum();
    ensure!(
        summary.bytes_discarded == 0 && skipped > 0 && stays >= 128 * MIB,
        "discarding was inhibited: {summary:?}, {} MiB stay",
        stays / MIB
    );
    let text = format!(
        "a paused daemon answered {} reports, skipped all {} MiB of them and left {} MiB with the host",
        summary.chains,
        skipped / MIB,
        stays / MIB
    );
    Ok((VerdictKind::AsDocumented, text))
}

/// Boots a guest that clears freed pages, which reports only to a device with F_PAGE_POISON.
pub(super) fn poison(toolbox: &Toolbox, daemon: &Path) -> Result<Seen> {
    let boot = |socket: &Path| {
        let config = GuestConfig {
            balloon: Balloon::VhostUser { socket: socket.to_owned() },
            kernel_args: vec!["init_on_free=1".to_owned()],
            ..GuestConfig::default()
        };
        LinuxGuest::boot(toolbox, config)
    };
    let acked = |guest: &LinuxGuest| -> Result<u64> {
        Ok(guest.agent().balloon()?.context("the guest has no balloon")?.features)
    };
    // The faulty device offers nothing but reporting.
    let alone = FaultyDevice::start(FaultPlan::default())?;
    let guest = boot(&alone.socket())?;
    guest.load_balloon_driver("")?;
    let reports_alone = acked(&guest)? & feature::REPORTING != 0;
    drop(guest);
    let daemon = DaemonProcess::spawn(daemon, &DaemonOptions::default())?;
    let guest = boot(&daemon.socket())?;
    let touched = guest.resident_bytes()?;
    guest.load_balloon_driver("")?;
    let both = feature::REPORTING | feature::PAGE_POISON;
    let together = acked(&guest)? & both == both;
    let mut resident = touched;
    let given_back = wait_until(PATIENCE, LOOK_EVERY, || {
        resident = guest.resident_bytes().map_err(|error| format!("{error:#}"))?;
        if resident < touched / 2 { Ok(()) } else { Err("the host still holds it".to_owned()) }
    });
    guest.agent().alloc(USED, 256 * MIB, 1)?;
    let intact = guest.agent().verify(USED)?.mismatches == 0;
    let shown = reports_alone || !together || given_back.is_err() || !intact;
    let kind = if shown { VerdictKind::Shown } else { VerdictKind::Survived };
    let text = format!(
        "Linux {} with init_on_free=1: offered reporting alone it {}; offered poison as well by the daemon \
         it {}, and of {} MiB that it had touched {} stayed with the host",
        guest.hello().kernel_release,
        if reports_alone { "takes it" } else { "declines it" },
        if together { "takes both" } else { "does not take both" },
        touched / MIB,
        resident / MIB
    );
    Ok((kind, text))
}
