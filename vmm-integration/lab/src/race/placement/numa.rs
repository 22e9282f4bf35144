// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Linux guest with two NUMA nodes, its device, and what it shows.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use guest_agent::placement::{KILLED, PlacedTask, PlacementPlan, PlacementReport, Policy, Scope};
use vmm_integration::linux_guest::AgentClient;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{GuestConfig, LinuxGuest, Toolbox};

use super::kernel_log::Complaints;
use super::settings::Settings;
use crate::experiment::Context;
use crate::progress;
use crate::race::reporter::{Device, Reporter, begin_to_report};
use crate::race::zoneinfo::{self, Zone};
use crate::store::Findings;

pub(super) const MIB: u64 = 1 << 20;
/// The node that tasks are bound to. The kernel's own memory is in node 0.
pub(super) const NODE: u32 = 1;
const PAGE_BYTES: u64 = 4096;
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long tasks may take to end when they are stopped, and to be killed.
const END: Duration = Duration::from_secs(120);
/// The low watermark lies so much of a zone above its min watermark, in 1/10,000: the kernel's
/// largest.
const SCALE: u64 = 3000;
/// The min watermark lies so much of the zone below its free memory, in 1/100: less than [`SCALE`], so
/// that free memory lies between the two.
const ROOM: u64 = 25;
/// As `/proc/zoneinfo` has it.
pub(super) const MOVABLE: &str = "Movable";
/// How long memory of killed tasks may take to be free, and how much less than before is enough.
const SETTLE: Duration = Duration::from_secs(30);
const SETTLED: u64 = 8 * MIB;
/// A share of a zone so small that a per-CPU list holds four batches.
const SHORT_LISTS: &str = "100000";

/// The guest.
pub(super) struct Numa {
    pub(super) guest: LinuxGuest,
    pub(super) device: Device,
    /// What was there before the experiment.
    log_bytes: usize,
    vmstat: BTreeMap<String, u64>,
    /// Of [`NODE`], before the first task.
    free_bytes: u64,
}

/// What came of tasks, in the guest's log and counters.
pub(super) struct Outcome {
    pub(super) placement: PlacementReport,
    pub(super) complaints: Complaints,
    /// All OOM kills.
    pub(super) oom_kills: u64,
    /// Allocations that reclaimed by themselves.
    pub(super) direct_reclaims: u64,
    /// Tasks that had not ended [`END`] after they were stopped.
    pub(super) endless: bool,
}

impl Numa {
    /// Boots it. Nothing is reported yet.
    pub(super) fn boot(
        toolbox: &Toolbox,
        nodes: [u64; 2],
        reporter: Reporter,
        settings: &Settings,
        context: &Context<'_>,
    ) -> Result<Self> {
        let device = Device::start(reporter, settings.late, context)?;
        let config = GuestConfig {
            memory_bytes: nodes.iter().sum(),
            node_bytes: nodes.to_vec(),
            cpus: settings.cpus,
            balloon: device.balloon(),
            // Pages are counted, not huge pages; khugepaged would raise the watermarks.
            kernel_args: vec!["transparent_hugepage=never".to_owned()],
            ..GuestConfig::default()
        };
        let guest = LinuxGuest::boot(toolbox, config)?;
        Ok(Self { guest, device, log_bytes: 0, vmstat: BTreeMap::new(), free_bytes: 0 })
    }

    pub(super) fn agent(&self) -> &AgentClient {
        self.guest.agent()
    }

    /// The planted fault: a task asks for more than its node has, confined by a cpuset and then by a
    /// policy. Each must be counted as one OOM kill with that constraint, and nothing else.
    ///
    /// # Errors
    /// If it is not, which makes every other count worthless.
    pub(super) fn control(&mut self) -> Result<u64> {
        self.free_bytes = self.free()?;
        let too_much = PlacedTask {
            bytes: self.zones()?.iter().map(|zone| zone.pages("managed") * PAGE_BYTES).sum(),
            rounds: 1,
            ..PlacedTask::default()
        };
        let bound = PlacedTask { policy: Policy::Bind, nodes: vec![NODE], ..too_much.clone() };
        let mapping = PlacedTask { scope: Scope::Mapping, ..bound.clone() };
        let plans = [
            ("cpuset", too_much, vec![NODE.to_string()]),
            ("memory-policy", bound, Vec::new()),
            ("memory-policy", mapping, Vec::new()),
        ];
        let count = plans.len() as u64;
        for (constraint, task, mems) in plans {
            self.begin()?;
            let plan = PlacementPlan { tasks: vec![task], mems, ..PlacementPlan::default() };
            self.agent().start_placement(&plan)?;
            let outcome = self.outcome(&mut |_| Ok(true))?;
            let Outcome { placement, complaints, oom_kills, .. } = &outcome;
            let expected = BTreeMap::from([(constraint.to_owned(), 1)]);
            ensure!(
                *oom_kills == 1 && complaints.oom == expected && placement.ends(KILLED) == 1,
                "the control was not counted (got {oom_kills} OOM kills, {complaints:?}, {:?}, \
                 expected one of {constraint})",
                placement.tasks
            );
        }
        self.begin()?;
        Ok(count)
    }

    /// Free bytes of [`NODE`].
    fn free(&self) -> Result<u64> {
        Ok(self.zones()?.iter().map(|zone| zone.pages("free") * PAGE_BYTES).sum())
    }

    /// Waits until nearly all that the planted tasks had is free again: a killed task has ended before
    /// its last pages are. Says if it is not.
    pub(super) fn settle(&self, findings: &mut Findings) {
        let enough = self.free_bytes.saturating_sub(SETTLED);
        let settled = wait_until(SETTLE, LOOK_EVERY, || match self.free() {
            Ok(free) if free >= enough => Ok(()),
            Ok(free) => Err(format!("{} of {} MiB are free", free / MIB, self.free_bytes / MIB)),
            Err(error) => Err(format!("{error:#}")),
        });
        if let Err(error) = settled {
            findings.note(format!("The node is not as free as before the control: {error:#}."));
        }
    }

    /// What comes from now on is counted.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.log_bytes = self.guest.serial()?.len();
        self.vmstat = self.vmstat()?;
        Ok(())
    }

    /// Has per-CPU lists hold next to nothing: what they hold another CPU does not get, report or no
    /// report.
    pub(super) fn shorten_lists(&self) -> Result<()> {
        self.agent().write_file("/proc/sys/vm/percpu_pagelist_high_fraction", SHORT_LISTS)
    }

    /// All zones with pages.
    pub(super) fn all_zones(&self) -> Result<Vec<Zone>> {
        Ok(zoneinfo::parse(&self.agent().read_file("/proc/zoneinfo")?))
    }

    /// Those of [`NODE`].
    pub(super) fn zones(&self) -> Result<Vec<Zone>> {
        let mut zones = self.all_zones()?;
        zones.retain(|zone| zone.node == NODE);
        ensure!(!zones.is_empty(), "/proc/zoneinfo has no zone of node {NODE}");
        Ok(zones)
    }

    /// Raises the watermarks until [`NODE`] has free memory between min and low, and each other node
    /// with less in use as well: each allocation takes the slow path, and gets its page there.
    pub(super) fn raise_watermarks(&self) -> Result<()> {
        let zones = self.all_zones()?;
        let lowmem = || zones.iter().filter(|zone| zone.name != MOVABLE);
        let managed: u64 = lowmem().map(|zone| zone.pages("managed")).sum();
        let of_node = lowmem().find(|zone| zone.node == NODE).context("the node has no zone")?;
        let share = of_node.pages("free") * 100 / of_node.pages("managed");
        let share = share.checked_sub(ROOM).context("the node has no room")?;
        let set = |name: &str, value: u64| {
            self.agent().write_file(&format!("/proc/sys/vm/{name}"), &value.to_string())
        };
        set("watermark_boost_factor", 0)?;
        set("watermark_scale_factor", SCALE)?;
        // The kernel shares it out by the size of a zone.
        set("min_free_kbytes", managed * 4 * share / 100)
    }

    /// Whether free memory lies between min and low in the largest zone of [`NODE`] but `ZONE_MOVABLE`.
    pub(super) fn is_between(&self) -> Result<bool> {
        let zones = self.zones()?.into_iter().filter(|zone| zone.name != MOVABLE);
        let zone = zones.max_by_key(|zone| zone.pages("managed")).context("no other zone")?;
        Ok((zone.pages("min")..zone.pages("low")).contains(&zone.pages("free")))
    }

    fn vmstat(&self) -> Result<BTreeMap<String, u64>> {
        let text = self.agent().read_file("/proc/vmstat")?;
        let field = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        let all: BTreeMap<_, _> = text.lines().filter_map(field).collect();
        ensure!(all.contains_key("oom_kill"), "/proc/vmstat does not count OOM kills");
        Ok(all)
    }

    /// Watches the tasks until they end, or `goes_on` says no; then stops them, and returns what came
    /// of them since [`Numa::begin`].
    pub(super) fn outcome(
        &self,
        goes_on: &mut dyn FnMut(&PlacementReport) -> Result<bool>,
    ) -> Result<Outcome> {
        let mut placement = self.agent().placement(false)?;
        while placement.running {
            progress::check()?;
            thread::sleep(LOOK_EVERY);
            placement = self.agent().placement(false)?;
            if !goes_on(&placement)? {
                break;
            }
        }
        let stopping = Instant::now();
        let mut running = placement.running;
        while running && stopping.elapsed() < END {
            running = self.agent().placement(true)?.running;
            thread::sleep(LOOK_EVERY);
        }
        let now = self.vmstat()?;
        let since = |name: &str| {
            let of = |vmstat: &BTreeMap<String, u64>| vmstat.get(name).copied().unwrap_or(0);
            of(&now).saturating_sub(of(&self.vmstat))
        };
        let serial = self.guest.serial()?;
        let log = serial.get(self.log_bytes..).context("the serial console got shorter")?;
        let stalls = now.keys().filter(|name| name.starts_with("allocstall_"));
        Ok(Outcome {
            placement,
            complaints: Complaints::of(log),
            oom_kills: since("oom_kill"),
            direct_reclaims: stalls.map(|name| since(name)).sum(),
            endless: running,
        })
    }

    /// Ends it, and its device.
    pub(super) fn finish(self) -> Result<()> {
        let Self { guest, device, .. } = self;
        let said = guest.quit()?;
        if !said.is_empty() {
            bail!("QEMU said: {said}");
        }
        device.finish()
    }
}

/// Begins to report, unless nothing needs reporting; returns the delay before a report in
/// milliseconds.
pub(super) fn report(
    numa: &Numa,
    reporter: Reporter,
    settings: &Settings,
    findings: &mut Findings,
) -> Result<u64> {
    if reporter == Reporter::None {
        return Ok(settings.delay);
    }
    let delay = begin_to_report(&numa.guest, settings.delay)?;
    findings.count("delay", delay, "ms", "from a free to the pass that reports it");
    Ok(delay)
}
