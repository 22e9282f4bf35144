// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest, its pool of huge pages and its device.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use guest_agent::hugetlb::{Sabotage, StormPlan, StormReport};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{GuestConfig, LinuxGuest, Toolbox};

use super::settings::{Reports, Settings};
use crate::experiment::Context;
use crate::race::placement::kernel_log::Complaints;
use crate::race::reporter::{Device, Reporter, begin_to_report};
use crate::store::Findings;

const MIB: u64 = 1 << 20;
/// What the guest needs beside huge pages.
const BASE: u64 = 512 * MIB;
const HUGE_PAGE: u64 = 2 * MIB;
/// For private mappings and their copies.
const MORE_PAGES: u64 = 32;
/// A line that is planted in the kernel's log, which shows a line when it has ended.
const PLANTED: &str = "WARNING: planted by the lab";
/// How long it may take to be in the file of the console.
const SOON: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Machine {
    guest: LinuxGuest,
    device: Device,
    delay: u64,
    /// What was there before the loads.
    log_bytes: usize,
    reports: u64,
    reported_bytes: u64,
}

impl Machine {
    /// Boots it. Nothing is reported yet.
    pub(super) fn boot(
        toolbox: &Toolbox,
        reports: Reports,
        settings: &Settings,
        context: &Context<'_>,
    ) -> Result<Self> {
        let reporter = if reports == Reports::None { Reporter::None } else { Reporter::Daemon };
        let device = Device::start(reporter, 0, context)?;
        let pages = u64::from(settings.pages) + MORE_PAGES;
        // Emulated, a processor that says that it clears bytes fast takes ten times as long for a page.
        let qemu_args = ["-cpu", "max,-erms,-fsrm"].map(str::to_owned).to_vec();
        let config = GuestConfig {
            // What is reported is free for longer than a moment, so there is more than is used.
            memory_bytes: BASE + 2 * pages * HUGE_PAGE,
            cpus: settings.cpus,
            balloon: device.balloon(),
            // Huge pages are those of the file.
            kernel_args: vec!["transparent_hugepage=never".to_owned()],
            qemu_args,
            ..GuestConfig::default()
        };
        let guest = LinuxGuest::boot(toolbox, config)?;
        let pool =
            if reports == Reports::Pool { "nr_hugepages" } else { "nr_overcommit_hugepages" };
        let path = format!("/proc/sys/vm/{pool}");
        guest.agent().write_file(&path, &pages.to_string())?;
        let got: u64 = guest.agent().read_file(&path)?.trim().parse().context("the pool")?;
        ensure!(got == pages, "{pool} is {got}: expected {pages}");
        let delay = settings.delay;
        Ok(Self { guest, device, delay, log_bytes: 0, reports: 0, reported_bytes: 0 })
    }

    pub(super) fn storm(&self, plan: &StormPlan) -> Result<StormReport> {
        self.guest.agent().storm(plan)
    }

    pub(super) fn release(&self) -> String {
        self.guest.hello().kernel_release.clone()
    }

    /// Plants each fault, and a line in the kernel's log; returns how many.
    ///
    /// # Errors
    /// If one is not found, which makes every other check worthless.
    pub(super) fn control(&self) -> Result<u64> {
        let planted = Sabotage::planted();
        let mut count = planted.len() as u64;
        for (plan, expected) in planted {
            let found = self.storm(&plan)?.faults_found(plan.arrangement).join("; ");
            ensure!(
                found.contains(expected),
                "a planted fault was not found: {:?} (got {found:?}, expected {expected:?})",
                plan.sabotage
            );
        }
        self.guest.agent().write_file("/dev/kmsg", &format!("{PLANTED}\n"))?;
        count += 1;
        wait_until(SOON, LOOK_EVERY, || match self.guest.serial() {
            Ok(serial) if Complaints::of(&serial).lines.iter().any(|l| l.contains(PLANTED)) => {
                Ok(())
            }
            Ok(_) => Err("a planted line of the kernel's log was not found".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        })?;
        Ok(count)
    }

    /// What comes from now on is counted, and reported if anything is.
    pub(super) fn begin(&mut self, findings: &mut Findings) -> Result<()> {
        self.log_bytes = self.guest.serial()?.len();
        if !matches!(self.device, Device::None) {
            let delay = begin_to_report(&self.guest, self.delay)?;
            findings.count("delay", delay, "ms", "from a free to the pass that reports it");
            self.settle()?;
        }
        self.reports = self.device.reports()?;
        self.reported_bytes = self.device.reported_bytes()?;
        Ok(())
    }

    /// Waits until what is free from the begin was reported.
    fn settle(&self) -> Result<()> {
        let quiet = Duration::from_millis(self.delay) + Duration::from_secs(3);
        let mut before = None;
        wait_until(SOON, quiet, || match self.device.reports() {
            Ok(now) if now > 0 && before == Some(now) => Ok(()),
            Ok(now) => {
                before = Some(now);
                Err(format!("{now} reports, and no end"))
            }
            Err(error) => Err(format!("{error:#}")),
        })
        .map(drop)
    }

    /// Reports since the begin, and MiB in them.
    pub(super) fn reported(&self) -> Result<(u64, u64)> {
        let bytes = self.device.reported_bytes()?.saturating_sub(self.reported_bytes);
        Ok((self.device.reports()?.saturating_sub(self.reports), bytes / MIB))
    }

    /// What the kernel's log complains of since the begin.
    pub(super) fn complaints(&self) -> Result<Vec<String>> {
        let serial = self.guest.serial()?;
        let log = serial.get(self.log_bytes..).context("the serial console got shorter")?;
        Ok(Complaints::of(log).lines)
    }

    /// Ends it, and its device.
    pub(super) fn finish(self) -> Result<()> {
        let said = self.guest.quit()?;
        if !said.is_empty() {
            bail!("QEMU said: {said}");
        }
        self.device.finish()
    }
}
