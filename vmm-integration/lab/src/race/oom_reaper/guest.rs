// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest, and one kill in it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use guest_agent::ProcessEnd;
use guest_agent::race::Task;
use guest_agent::victim::VictimState;
use vmm_integration::linux_guest::AgentClient;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{Accel, GuestConfig, LinuxGuest, Toolbox};

use super::holder::Holder;
use super::settings::Settings;
use super::trace::{self, Traced};
use crate::experiment::Context;
use crate::race::linux::complaint;
use crate::race::reporter::{Device, Reporter, begin_to_report};

const PAGE_BYTES: u64 = 4096;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// By path below `kernel`, in the order in which they are loaded.
const KVM: [&str; 3] = ["virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd"];
/// Pages of 4 KiB that KVM maps, of all virtual machines.
const KVM_PAGES: &str = "/sys/kernel/debug/kvm/pages_4k";
/// Memory in use from the beginning to the end, and what is in it.
const KEPT: u32 = 1;
const KEPT_BYTES: u64 = 32 << 20;
/// Memory that is freed before the kill, so that it is reported.
const FREED: u32 = 2;
/// One of so many parts of the available memory: the rest does not run out while a report withholds
/// memory, which would kill the victim too early.
const FREED_SHARE: u64 = 3;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The reaper waits two seconds, and then a tenth of a second between ten attempts.
const REAPED: Duration = Duration::from_secs(60);
/// How long a pass may take to begin after its delay.
const PASS: Duration = Duration::from_millis(500);
/// The function of Linux's driver that waits for the acknowledgement.
const WAITS_IN: &str = "virtballoon_free_page_report";
/// How long freed memory may take to be back with the host.
const RETURNED: Duration = Duration::from_secs(120);

/// A guest in which processes are killed.
pub(super) struct Killing {
    pub(super) guest: LinuxGuest,
    pub(super) device: Device,
    holder: Holder,
    reporter: Reporter,
    memory_bytes: u64,
    victim_bytes: u64,
    /// From a free to the pass that reports it.
    delay: Duration,
}

/// What came of a kill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reaped {
    /// Memory that the victim mapped before, in bytes.
    pub(super) before: u64,
    /// The same after the last attempt, while the victim is there.
    pub(super) after: u64,
    /// Pages that KVM mapped before.
    pub(super) kvm_before: u64,
    /// The same after.
    pub(super) kvm_after: u64,
    pub(super) traced: Traced,
    /// Whether the log says that the reaper gave up.
    pub(super) gave_up: bool,
    /// OOM kills beside that of the victim.
    pub(super) other_victims: u64,
    /// Whether the process that wanted the memory had it.
    pub(super) satisfied: bool,
    /// Whether the victim was stopped before its exit all the while.
    pub(super) stopped: bool,
    /// How long it took until most free memory was back with the host, while the victim was there.
    pub(super) returned: Option<Duration>,
}

impl Killing {
    /// Boots it, and begins to report.
    pub(super) fn boot(
        toolbox: &Toolbox,
        (holder, reporter): (Holder, Reporter),
        settings: &Settings,
        context: &Context<'_>,
    ) -> Result<Self> {
        let &Settings { memory, victim, cpus, delay, late, .. } = settings;
        let victim_bytes = victim / (2 * HUGE_PAGE_BYTES) * (2 * HUGE_PAGE_BYTES);
        ensure!(
            victim_bytes <= memory / 4,
            "invalid value of parameter victim (got {victim}, expected at most a fourth of {memory})"
        );
        let device = Device::start(reporter, late, context)?;
        let modules = if holder.needs_kvm() { &KVM[..] } else { &[] };
        let config = GuestConfig {
            memory_bytes: memory / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES,
            cpus,
            balloon: device.balloon(),
            modules: modules.iter().map(|path| format!("kernel/{path}")).collect(),
            // QEMU emulates the virtualization of AMD, whatever the host has.
            accel: Some(Accel::Tcg),
            // Pages are counted, not huge pages.
            kernel_args: vec!["transparent_hugepage=never".to_owned()],
            ..GuestConfig::default()
        };
        let memory_bytes = config.memory_bytes;
        let guest = LinuxGuest::boot(toolbox, config)?;
        for path in modules {
            guest.agent().load_module(path.rsplit('/').next().unwrap_or(path), "")?;
        }
        let mut killing = Self {
            guest,
            device,
            holder,
            reporter,
            memory_bytes,
            victim_bytes,
            delay: Duration::ZERO,
        };
        if holder == Holder::Hugetlb {
            killing.fill_pool()?;
        }
        killing.agent().alloc(KEPT, KEPT_BYTES, 1)?;
        if reporter != Reporter::None {
            killing.delay = Duration::from_millis(begin_to_report(&killing.guest, delay)?);
        }
        trace::begin(killing.agent(), holder.needs_kvm(), reporter != Reporter::None)?;
        Ok(killing)
    }

    /// Memory of a victim, in bytes.
    pub(super) fn victim_bytes(&self) -> u64 {
        self.victim_bytes
    }

    fn agent(&self) -> &AgentClient {
        self.guest.agent()
    }

    fn fill_pool(&self) -> Result<()> {
        let path = "/proc/sys/vm/nr_hugepages";
        let pages = (self.victim_bytes / HUGE_PAGE_BYTES).to_string();
        self.agent().write_file(path, &pages)?;
        let got = self.agent().read_file(path)?;
        ensure!(got.trim() == pages, "{path} is {}: expected {pages}", got.trim());
        Ok(())
    }

    /// Kills a process and looks at what becomes of its memory.
    pub(super) fn kill(&self) -> Result<Reaped> {
        let agent = self.agent();
        // While a report withholds most memory, the victim is killed before it has its own.
        self.await_return()?;
        agent.start_victim(&self.holder.plan(self.victim_bytes))?;
        let pid = agent.victim(false)?.pid;
        let before = self.mapped(pid)?;
        let kvm_before = self.kvm_pages()?;
        let kills = self.oom_kills()?;
        self.await_return()?;
        let meminfo = agent.meminfo()?;
        // More than there is without the victim's memory, and less than with half of it.
        let wanted = meminfo.bytes("MemFree") + self.victim_bytes / 4;
        trace::forget(agent)?;
        if self.reporter != Reporter::None {
            // Free memory that no report has had yet: the next one begins while memory runs out.
            let bytes = meminfo.bytes("MemAvailable") / FREED_SHARE;
            agent.alloc(FREED, bytes / PAGE_BYTES * PAGE_BYTES, 1)?;
            agent.free(FREED)?;
        }
        let log_bytes = self.guest.serial()?.len();
        let end = agent.use_memory(wanted / PAGE_BYTES * PAGE_BYTES)?;
        let gave_up = self.await_reaper(log_bytes, pid)?;
        let stopped = agent.victim(false)?.state == VictimState::Stopped;
        let reaped = Reaped {
            before,
            after: self.mapped(pid)?,
            kvm_before,
            kvm_after: self.kvm_pages()?,
            traced: trace::read(agent, pid)?,
            gave_up,
            other_victims: self.oom_kills()?.saturating_sub(kills + 1),
            satisfied: end == ProcessEnd::Done,
            stopped,
            returned: self.await_return()?,
        };
        agent.victim(true)?;
        agent.expect_intact(KEPT)?;
        if let Some(complaint) = complaint(&self.guest)? {
            bail!("{complaint}");
        }
        Ok(reaped)
    }

    /// Waits for the reaper's last word on a process; whether it gave up.
    fn await_reaper(&self, log_bytes: usize, pid: u32) -> Result<bool> {
        let words = [format!("reaped process {pid} "), format!("unable to reap pid:{pid} ")];
        wait_until(REAPED, LOOK_EVERY, || {
            let serial = self.guest.serial().map_err(|error| format!("{error:#}"))?;
            let log = serial.get(log_bytes..).unwrap_or_default();
            match words.iter().position(|word| log.contains(word)) {
                Some(word) => Ok(word == 1),
                None => Err(format!("the log has nothing of the OOM reaper on process {pid}")),
            }
        })
    }

    /// Waits until nothing is left to report and three fourths of the guest's free memory are back with
    /// the host; returns how long that took.
    fn await_return(&self) -> Result<Option<Duration>> {
        if self.reporter == Reporter::None {
            return Ok(None);
        }
        let began = Instant::now();
        let mut quiet: Option<Instant> = None;
        wait_until(RETURNED, LOOK_EVERY, || {
            match self.left_to_return().map_err(|error| format!("{error:#}"))? {
                Some(left) => {
                    quiet = None;
                    return Err(left);
                }
                None => quiet = quiet.or(Some(Instant::now())),
            }
            match quiet {
                // Memory that a report withholds is not free: only a guest that does not report counts.
                Some(since) if since.elapsed() > self.delay + PASS => {
                    Ok(Some(since.duration_since(began)))
                }
                _ => Err("another report may begin".to_owned()),
            }
        })
        .context("waiting for free memory to be back with the host")
    }

    /// What keeps free memory from being back with the host.
    fn left_to_return(&self) -> Result<Option<String>> {
        let waits = |task: &Task| task.stack.iter().any(|at| at.contains(WAITS_IN));
        if self.agent().tasks('D')?.iter().any(waits) {
            return Ok(Some("the driver waits for an acknowledgement".to_owned()));
        }
        let free = self.agent().meminfo()?.bytes("MemFree");
        let held = self.guest.resident_bytes()?.saturating_sub(self.memory_bytes - free);
        let most_is_back = held <= free / 4;
        Ok((!most_is_back).then(|| format!("the host holds {held} of {free} free bytes")))
    }

    /// Bytes that a process maps, huge pages included.
    fn mapped(&self, pid: u32) -> Result<u64> {
        let text = self.agent().read_file(&format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let line = line.with_context(|| format!("smaps_rollup has no {name}: {text:?}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        Ok((kib("Rss:")? + kib("Private_Hugetlb:")? + kib("Shared_Hugetlb:")?) << 10)
    }

    fn kvm_pages(&self) -> Result<u64> {
        if !self.holder.needs_kvm() {
            return Ok(0);
        }
        let text = self.agent().read_file(KVM_PAGES)?;
        text.trim().parse().with_context(|| format!("{KVM_PAGES} is {text:?}"))
    }

    fn oom_kills(&self) -> Result<u64> {
        let text = self.agent().read_file("/proc/vmstat")?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.context("/proc/vmstat does not count OOM kills")?.parse()?)
    }

    /// Ends it, and its device.
    pub(super) fn finish(self) -> Result<()> {
        let Self { guest, device, .. } = self;
        let said = guest.quit()?;
        ensure!(said.is_empty(), "QEMU said: {said}");
        device.finish()
    }
}
