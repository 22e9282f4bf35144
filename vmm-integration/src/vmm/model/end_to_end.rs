// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How fast guest memory comes back, from the model through the daemon to the host, and what takes
//! the time.
//!
//! The host's share is not seen from here, so it is measured apart: the same ranges are punched
//! directly, taking turns with the reports, in the calls that the daemon would make of them.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{AllocRequest, Mm, Pfn, PfnRange, ZoneId};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::reporting::{Config, ReportError, ReportSink, Reporter};
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;

use super::layout::BOOT_FILE;
use super::{GuestMemory, ModelConfig, ModelVm};
use crate::daemon::{DaemonOptions, DaemonProcess};
use crate::guest_memory::Backing;
use crate::measure::host;
use crate::measure::hugetlb::Pool;

/// The order that memory is taken and freed in: the largest block.
const ORDER: u8 = 10;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// What the guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// Pages of 2 MiB out of the hugetlb pool.
    Hugetlb,
    /// Transparent huge pages.
    Transparent,
    /// Pages of 4 KiB.
    Base,
}

impl Pages {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Hugetlb, Self::Transparent, Self::Base];
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hugetlb => "hugetlb 2 MiB",
            Self::Transparent => "transparent huge",
            Self::Base => "4 KiB",
        })
    }
}

/// Parts of the time of giving memory back, that sum up to one.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shares {
    /// In the guest: finding, isolating, testing, undoing.
    pub isolating: f64,
    /// Between guest and host: descriptors, notifications, waking up, and the daemon's own work.
    pub ring: f64,
    /// In the host's kernel, punching holes.
    pub host: f64,
}

/// How fast memory came back.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Bytes discarded in all rounds together.
    pub bytes: u64,
    /// Reports that it took.
    pub chains: u64,
    /// From the beginning of a pass to its end, in seconds, of all rounds.
    pub seconds: f64,
    /// One over the other.
    pub gib_per_second: f64,
    /// What the host's kernel alone would make, in GiB/s: no daemon can be faster.
    pub host_gib_per_second: f64,
    /// CPU time of the daemon in that time, in seconds.
    pub daemon_cpu_seconds: f64,
    /// What took the time.
    pub shares: Shares,
}

impl Figures {
    fn new(bytes: u64, chains: u64, passes: Duration, waited: Duration, host: Duration) -> Self {
        // Measured apart, the host's share may come out a little more than all of the wait.
        let host = host.min(waited);
        let share = |part: Duration| part.as_secs_f64() / passes.as_secs_f64();
        Self {
            bytes,
            chains,
            seconds: passes.as_secs_f64(),
            gib_per_second: gib(bytes) / passes.as_secs_f64(),
            host_gib_per_second: gib(bytes) / host.as_secs_f64(),
            daemon_cpu_seconds: 0.0,
            shares: Shares {
                isolating: share(passes.saturating_sub(waited)),
                ring: share(waited - host),
                host: share(host),
            },
        }
    }

    /// What takes most of the time.
    pub fn limit(&self) -> &'static str {
        let Shares { isolating, ring, host } = self.shares;
        if host >= ring && host >= isolating {
            "the host's kernel, punching holes"
        } else if ring >= isolating {
            "ring and daemon"
        } else {
            "isolation in the guest"
        }
    }
}

/// One kind of backing.
#[derive(Clone, Debug, Serialize)]
pub struct Backed {
    /// What the memory was made of.
    pub pages: Pages,
    /// Nothing if it could not be measured.
    pub figures: Option<Figures>,
    /// Why not.
    pub not_measured: Option<String>,
}

/// The results of [`end_to_end`].
#[derive(Clone, Debug, Serialize)]
pub struct EndToEnd {
    /// Memory of the guest in bytes.
    pub memory_bytes: u64,
    /// Rounds of filling and discarding.
    pub rounds: u32,
    /// By backing.
    pub backings: Vec<Backed>,
}

impl fmt::Display for EndToEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Memory reclaimed from the model by the daemon: {} MiB, {} times",
            self.memory_bytes >> 20,
            self.rounds
        )?;
        writeln!(
            f,
            "  {:<18} {:>8} {:>10} {:>6} {:>6} {:>11}  limited by",
            "backing", "GiB/s", "isolating", "ring", "host", "host alone"
        )?;
        for Backed { pages, figures, not_measured } in &self.backings {
            let Some(figures) = figures else {
                let why = not_measured.as_deref().unwrap_or_default();
                writeln!(f, "  {pages:<18} not measured: {why}")?;
                continue;
            };
            let Shares { isolating, ring, host } = figures.shares;
            writeln!(
                f,
                "  {pages:<18} {:>8.1} {:>8.1} % {:>4.0} % {:>4.0} % {:>5.1} GiB/s  {}",
                figures.gib_per_second,
                100.0 * isolating,
                100.0 * ring,
                100.0 * host,
                figures.host_gib_per_second,
                figures.limit()
            )?;
        }
        Ok(())
    }
}

/// Measures with each of these backings that this host has: a guest of `memory_bytes` fills its
/// memory and frees it, `rounds` times, and the reporter's pass is timed.
///
/// Where the pool of huge pages is too small it is raised for as long as it takes, which root may
/// do; a killed process leaves it raised. Transparent huge pages are taken only
/// where the host has turned them on.
///
/// # Errors
/// When the daemon or the guest fails, or memory that was discarded is still there. That a
/// backing cannot be had is no error: see [`Backed::not_measured`].
pub fn end_to_end(
    daemon: &Path,
    kinds: &[Pages],
    memory_bytes: u64,
    rounds: u32,
) -> Result<EndToEnd> {
    let mut backings = Vec::new();
    for &pages in kinds {
        let (figures, not_measured) = match available(pages, memory_bytes) {
            Err(why) => (None, Some(format!("{why:#}"))),
            Ok(_pool) => {
                let figures = measure(daemon, pages, memory_bytes, rounds);
                (Some(figures.with_context(|| pages.to_string())?), None)
            }
        };
        backings.push(Backed { pages, figures, not_measured });
    }
    Ok(EndToEnd { memory_bytes, rounds, backings })
}

/// Makes sure that there are such pages. What is returned keeps them.
fn available(pages: Pages, bytes: u64) -> Result<Option<Pool>> {
    match pages {
        Pages::Base => Ok(None),
        Pages::Transparent => {
            let setting = fs::read_to_string(SHMEM).context(SHMEM)?;
            let on = ["[always]", "[within_size]", "[advise]", "[force]"];
            ensure!(
                on.iter().any(|on| setting.contains(on)),
                "{SHMEM} is {}; \"advise\" is enough",
                setting.trim()
            );
            Ok(None)
        }
        Pages::Hugetlb => Pool::with_free(HUGE_PAGE_BYTES, bytes).map(Some),
    }
}

/// Passes reports on and remembers what was in each.
struct Recorder<S> {
    sink: S,
    reports: Vec<Vec<PfnRange>>,
}

impl<S: ReportSink> ReportSink for Recorder<S> {
    fn report(
        &mut self,
        ranges: &[PfnRange],
        timeout: Option<Duration>,
    ) -> Result<(), ReportError> {
        self.reports.push(ranges.to_vec());
        self.sink.report(ranges, timeout)
    }

    fn settle(&mut self) -> bool {
        self.sink.settle()
    }

    fn capacity(&self) -> usize {
        self.sink.capacity()
    }
}

fn measure(daemon: &Path, pages: Pages, memory_bytes: u64, rounds: u32) -> Result<Figures> {
    let options = DaemonOptions { args: vec!["--hugetlb".into()], ..DaemonOptions::default() };
    let mut daemon = DaemonProcess::spawn(daemon, &options)?;
    let mut memory = GuestMemory::flat(memory_bytes, 1);
    memory.huge_pages = pages == Pages::Transparent;
    if pages == Pages::Hugetlb {
        memory.backing = Backing::Hugetlb { page_bytes: HUGE_PAGE_BYTES };
    }
    let mut vm = ModelVm::start(&daemon.socket(), ModelConfig::new(memory))?;
    let mut queue = Recorder { sink: vm.take_reporting()?, reports: Vec::new() };
    let mut reporter = Reporter::new(Arc::clone(vm.mm()), Config::default())?;
    // The first pass reports memory that was never touched; it does not count.
    give_back(&vm, &mut reporter, &mut queue)?;
    let (mut bytes, mut passes, mut punching) = (0, Duration::ZERO, Duration::ZERO);
    let (mut waited, mut chains) = (Duration::ZERO, 0);
    let mut cpu = Duration::ZERO;
    for _ in 0..rounds {
        let blocks = fill(&vm)?;
        release(vm.mm(), &blocks);
        bytes += vm.resident_bytes()?;
        queue.reports.clear();
        let before = queue.sink.counters();
        let cpu_before = host::cpu_time(daemon.pid())?;
        passes += give_back(&vm, &mut reporter, &mut queue)?;
        cpu += host::cpu_time(daemon.pid())?.saturating_sub(cpu_before);
        let after = queue.sink.counters();
        waited += after.waited - before.waited;
        chains += after.chains - before.chains;

        let blocks = fill(&vm)?;
        punching += punch(&vm, &queue.reports)?;
        ensure!(vm.resident_bytes()? == 0, "the reports did not cover what was freed");
        // Reported again, and then the round is over.
        release(vm.mm(), &blocks);
        give_back(&vm, &mut reporter, &mut queue)?;
    }
    drop(vm);
    daemon.terminate(Duration::from_secs(20))?;
    let figures = Figures::new(bytes, chains, passes, waited, punching);
    Ok(Figures { daemon_cpu_seconds: cpu.as_secs_f64(), ..figures })
}

/// Takes and populates all the memory that can be had in the largest blocks.
fn fill(vm: &ModelVm) -> Result<Vec<Pfn>> {
    let mut blocks = Vec::new();
    while let Ok(pfn) = vm.mm().alloc(0, AllocRequest::movable(ORDER)) {
        let range = GpaRange::new(Gpa(pfn.address()), PAGE_BYTES << ORDER);
        vm.ram().populate(range.context("a block past 2^64")?)?;
        blocks.push(pfn);
    }
    Ok(blocks)
}

fn release(mm: &Mm, blocks: &[Pfn]) {
    blocks.iter().for_each(|pfn| mm.free(0, *pfn));
    (0..mm.zone_count()).for_each(|zone| mm.drain_all(ZoneId(zone)));
}

/// Lets the reporter make passes until all that is free has been discarded.
fn give_back(
    vm: &ModelVm,
    reporter: &mut Reporter,
    queue: &mut dyn ReportSink,
) -> Result<Duration> {
    let mut time = Duration::ZERO;
    for _ in 0..16 {
        let started = Instant::now();
        reporter.pass(queue);
        time += started.elapsed();
        if vm.resident_bytes()? == 0 {
            return Ok(time);
        }
    }
    bail!("{} bytes are still there after 16 passes", vm.resident_bytes()?)
}

/// Punches what was reported, each report's neighbours in one call, as the daemon does.
fn punch(vm: &ModelVm, reports: &[Vec<PfnRange>]) -> Result<Duration> {
    let mut calls = Vec::new();
    for report in reports {
        let mut ranges = report.clone();
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let meets = next.start == range.end;
            if meets {
                range.end = next.end;
            }
            meets
        });
        calls.extend(ranges);
    }
    let file = vm.ram().file(BOOT_FILE);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let started = Instant::now();
    for range in calls {
        let bytes = u64::from(range.pages()) * PAGE_BYTES;
        fallocate(file, flags, range.start.address(), bytes)?;
    }
    Ok(started.elapsed())
}

/// Bytes as GiB.
#[allow(clippy::cast_precision_loss)] // a figure for people
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_up_to_one_and_the_largest_is_named() {
        let ms = Duration::from_millis;
        let figures = Figures::new(1 << 30, 16, ms(100), ms(90), ms(60));
        let Shares { isolating, ring, host } = figures.shares;
        assert!((isolating + ring + host - 1.0).abs() < 1e-9);
        assert!((figures.gib_per_second - 10.0).abs() < 1e-9);
        assert!(figures.limit().starts_with("the host"));
        // A host's share that was measured as more than the wait is all of it.
        let figures = Figures::new(1 << 30, 16, ms(100), ms(30), ms(60));
        assert!(figures.shares.ring.abs() < 1e-9);
        assert!(figures.limit().starts_with("isolation"));
    }
}
