// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `kernel`: mainline's reporting beside the scheme of November 2019, in one real guest.
//!
//! Each scheme has its turn in the same guest, with the same delay before a pass, under the same
//! load. The module that isolates is loaded for its turn; mainline has the turns without it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use guest_agent::faulting::{FaultingPlan, Work};
use vmm_integration::linux_guest::isolation::{self, Statistics};
use vmm_integration::measure::host::{Sample, Sampler, wait_until};
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest};

use super::daemon::{CountedDaemon, Discards};
use super::pairs::Estimate;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{self, Kernel};
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Whole};
use crate::progress;
use crate::scheme::KernelScheme;
use crate::store::{Findings, Place, VerdictKind};

/// See the module.
pub(super) struct KernelSchemes;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;
const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";
/// The longest wait for a rest.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Delays without a report that count as a rest.
const REST: u64 = 3;
/// Allocation of the load.
const FREED: u32 = 1;
/// Delay before a pass in milliseconds, beside programs that take and free huge pages all the time.
const HOSTILE_DELAY: &str = "10";
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// Counts of what came between a pass and a free block.
const RACES: [(&str, &str); 7] = [
    ("held", "blocks that were held"),
    ("not-free", "granules that were not free at the look"),
    ("busy", "blocks that someone else isolated"),
    ("lost", "blocks that were taken between look and test"),
    ("low", "blocks that their zone could not spare"),
    ("second-looks", "looks under the zone's lock"),
    ("second-looks-free", "of these, that found a free block"),
];

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        delay: u64, Whole(10, 60_000), 500, 2000, "delay before a pass, in milliseconds, for every scheme";
        memory: u64, Bytes(512 << 20, 64 << 30), 1 << 30, 2 << 30, "memory of the guest";
        freed: u64, Bytes(2 << 20, 32 << 30), 256 << 20, 512 << 20, "memory that is used and freed in a round";
        rounds: usize, Whole(1, 1000), 2, 9, "rounds, in each of which every scheme has a turn";
        faults: u64, Whole(100, 600_000), 500, 3000, "time in which programs fault memory in, in milliseconds, for each way";
    }
}

impl Case for Kernel {
    fn place(&self) -> Place {
        Place { table: "one guest, every scheme in turn".to_owned(), column: self.to_string() }
    }
}

impl Experiment for KernelSchemes {
    type Parameters = Settings;
    type Case = Kernel;

    fn name(&self) -> &'static str {
        "kernel"
    }

    fn about(&self) -> &'static str {
        "Measures mainline's free page reporting beside the scheme of November 2019 in one real guest: three \
         trackers, blocks isolated or pulled. Reports, duplicates, time until freed memory is back, cost of a \
         block, and what programs that fault memory in notice."
    }

    fn repeats(&self, _: &Kernel) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<Kernel> {
        // The stable kernel has no parameter for the delay, which must be the same for all.
        vec![Kernel::Newest]
    }

    fn run(&self, case: &Kernel, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match guest::toolbox()? {
            Ok(toolbox) => case.of(&toolbox)?,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let daemon = CountedDaemon::start(context, Vec::new())?;
        let guest = LinuxGuest::boot(
            &toolbox,
            GuestConfig {
                memory_bytes: settings.memory,
                balloon: Balloon::VhostUser { socket: daemon.socket() },
                own_modules: true,
                ..GuestConfig::default()
            },
        )?;
        guest.load_balloon_driver("")?;
        guest.agent().write_file(DELAY, &settings.delay.to_string())?;
        // Which was asked for before the delay was set.
        first_report(&daemon, 0)?;
        let mut turns: Vec<(KernelScheme, Turn)> = Vec::new();
        for round in 0..settings.rounds {
            let all = KernelScheme::ALL;
            for place in 0..all.len() {
                context
                    .progress
                    .at((round * all.len() + place) as u64, (settings.rounds * all.len()) as u64);
                progress::check()?;
                // Another one begins in each round.
                let scheme = all[(place + round) % all.len()];
                let what = || format!("the turn of {scheme} in round {round}");
                turns.push((scheme, turn(&guest, &daemon, scheme, settings).with_context(what)?));
            }
        }
        let mut findings = Findings::default();
        for scheme in KernelScheme::ALL {
            let of_scheme = turns.iter().filter(|(other, _)| *other == scheme);
            let of_scheme: Vec<&Turn> = of_scheme.map(|(_, turn)| turn).collect();
            figures(&mut findings, scheme, &of_scheme)?;
            if let Some(first) = of_scheme.first() {
                let what = "that came back to the host after the memory was freed, first round";
                let points = first.curve.clone();
                findings.series(&format!("back of {scheme}"), ("s", "MiB"), what, points);
            }
        }
        findings.note(guest.hello().kernel_release.clone());
        guest.quit()?;
        daemon.finish()?;
        Ok(findings)
    }
}

/// What a turn of a scheme showed.
struct Turn {
    /// Of the freed memory.
    reports: u64,
    reported: Discards,
    back: [f64; 3],
    /// What of it was back, in MiB, at which second.
    curve: Vec<(f64, f64)>,
    /// Bytes that are free on the lists of single CPUs at rest.
    on_cpu_lists: u64,
    /// Bytes reported after these lists were drained.
    after_drain: u64,
    /// Bytes that the host holds at rest.
    resident: u64,
    /// Pages a second that programs took beside passes, of anonymous memory and of a private mapping
    /// of a file.
    faults: [f64; 2],
    /// Huge pages of the pool that could be had, of as many as memory was free for.
    huge_pages: f64,
    /// Pageblocks that are neither movable nor of a special kind.
    unmovable: u64,
    /// Of the module, before and after programs have churned.
    statistics: Option<[Statistics; 2]>,
}

/// Runs one turn.
fn turn(
    guest: &LinuxGuest,
    daemon: &CountedDaemon,
    scheme: KernelScheme,
    settings: &Settings,
) -> Result<Turn> {
    let agent = guest.agent();
    if let Some(params) = scheme.params() {
        isolation::load(agent, &params)?;
    }
    rest(guest, daemon, settings.delay)?;
    agent.alloc(FREED, settings.freed, 1)?;
    rest(guest, daemon, settings.delay)?;
    let (reports, before) = (daemon.reports()?, daemon.discards()?);
    let full = guest.resident_bytes()?;
    let sampler = Sampler::start(Duration::from_millis(10), guest.memory().try_clone()?, || None);
    agent.free(FREED)?;
    first_report(daemon, reports)?;
    rest(guest, daemon, settings.delay)?;
    let samples = sampler.stop()?;
    let (reports, reported) = (daemon.reports()? - reports, daemon.discards()?.since(before));
    let resident = guest.resident_bytes()?;
    let back = [50, 99, 100].map(|hundredths| back_after(&samples, full, resident, hundredths));
    let curve = curve(&samples, full);

    let on_cpu_lists = cpu_lists(&agent.read_file("/proc/zoneinfo")?) * PAGE;
    let before = daemon.discards()?;
    // Compacting a node takes what lies on the lists of its CPUs back first.
    agent.write_file("/proc/sys/vm/compact_memory", "1")?;
    rest(guest, daemon, settings.delay)?;
    let after_drain = daemon.discards()?.since(before).bytes;

    let faults = [fault(guest, Work::Anonymous, settings)?, fault(guest, Work::File, settings)?];
    let huge_pages = huge_pages(guest)?;
    rest(guest, daemon, settings.delay)?;
    let unmovable = unmovable_blocks(&agent.read_file("/proc/pagetypeinfo")?);
    let statistics = match scheme {
        KernelScheme::Mainline => None,
        _ => {
            let before = Statistics::read(agent)?;
            agent.write_file(DELAY, HOSTILE_DELAY)?;
            fault(guest, Work::Populate, settings)?;
            let after = Statistics::read(agent)?;
            agent.write_file(DELAY, &settings.delay.to_string())?;
            isolation::unload(agent)?;
            Some([before, after])
        }
    };
    Ok(Turn {
        reports,
        reported,
        back,
        curve,
        on_cpu_lists,
        after_drain,
        resident,
        faults,
        huge_pages,
        unmovable,
        statistics,
    })
}

/// Pages a second that two programs take.
#[allow(clippy::cast_precision_loss)] // a figure for people
fn fault(guest: &LinuxGuest, work: Work, settings: &Settings) -> Result<f64> {
    let bytes = settings.freed / 4 / work.copies();
    let faulted = guest.agent().fault(FaultingPlan {
        work,
        tasks: 2,
        bytes,
        milliseconds: settings.faults,
    })?;
    Ok(faulted.pages as f64 * 1e9 / faulted.nanoseconds as f64)
}

/// Share of the free memory that can be had in huge pages, in percent.
#[allow(clippy::cast_precision_loss)] // a figure for people
fn huge_pages(guest: &LinuxGuest) -> Result<f64> {
    let agent = guest.agent();
    let vmstat = agent.read_file("/proc/vmstat")?;
    let free = vmstat.lines().find_map(|line| line.strip_prefix("nr_free_pages "));
    let free: u64 = free.context("vmstat has no nr_free_pages")?.trim().parse()?;
    let asked = free * PAGE / HUGE_PAGE;
    agent.write_file(HUGE_PAGES, &asked.to_string())?;
    let got: u64 = agent.read_file(HUGE_PAGES)?.trim().parse()?;
    agent.write_file(HUGE_PAGES, "0")?;
    Ok(got as f64 * 100.0 / asked as f64)
}

/// Waits for a report after the first `so_many`.
fn first_report(daemon: &CountedDaemon, so_many: u64) -> Result<()> {
    wait_until(PATIENCE, LOOK_EVERY, || match daemon.reports() {
        Ok(now) if now > so_many => Ok(()),
        now => Err(format!("{now:?} reports, as before")),
    })
}

/// Waits until no report has come for some delays.
fn rest(guest: &LinuxGuest, daemon: &CountedDaemon, delay_ms: u64) -> Result<()> {
    let uptime = || guest.agent().hello().map(|hello| hello.uptime_ms);
    let mut reports = daemon.reports()?;
    let mut since = uptime()?;
    let started = Instant::now();
    wait_until(PATIENCE, LOOK_EVERY, || {
        let text = |error: anyhow::Error| format!("{error:#}");
        let (now, at) = (daemon.reports().map_err(text)?, uptime().map_err(text)?);
        if now != reports {
            (reports, since) = (now, at);
        }
        if at >= since + REST * delay_ms { Ok(()) } else { Err(format!("{now} reports")) }
    })
    .with_context(|| format!("no rest after {:?}", started.elapsed()))
}

/// Seconds until so much of what comes back was back; `hundredths` of the difference of `full` and
/// `at_rest`.
fn back_after(samples: &[Sample], full: u64, at_rest: u64, hundredths: u64) -> f64 {
    let fallen = full.saturating_sub(at_rest) * hundredths / 100;
    let there = samples.iter().find(|sample| sample.host_resident_bytes <= full - fallen);
    there.or(samples.last()).map_or(0.0, |sample| sample.seconds)
}

/// Where the curve of what is back changes.
#[allow(clippy::cast_precision_loss)] // a curve for people
fn curve(samples: &[Sample], full: u64) -> Vec<(f64, f64)> {
    let back =
        |sample: &Sample| full.saturating_sub(sample.host_resident_bytes) as f64 / MIB as f64;
    let mut points: Vec<(f64, f64)> =
        samples.iter().map(|sample| (sample.seconds, back(sample))).collect();
    points.dedup_by(|next, last| (next.1 - last.1).abs() < 1.0);
    points
}

/// Pages on the lists of single CPUs, as zoneinfo counts them.
fn cpu_lists(zoneinfo: &str) -> u64 {
    let counts = zoneinfo.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// Pageblocks of type unmovable or reclaimable, as pagetypeinfo counts them.
fn unmovable_blocks(pagetypeinfo: &str) -> u64 {
    let mut lines =
        pagetypeinfo.lines().skip_while(|line| !line.starts_with("Number of blocks type"));
    let Some(header) = lines.next() else { return 0 };
    let names: Vec<&str> =
        header.trim_start_matches("Number of blocks type").split_whitespace().collect();
    let wanted = ["Unmovable", "Reclaimable"];
    lines
        .filter_map(|line| line.split_once("zone")?.1.trim().split_once(char::is_whitespace))
        .flat_map(|(_, counts)| names.iter().zip(counts.split_whitespace()))
        .filter(|(name, _)| wanted.contains(*name))
        .filter_map(|(_, count)| count.parse::<u64>().ok())
        .sum()
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn figures(findings: &mut Findings, scheme: KernelScheme, turns: &[&Turn]) -> Result<()> {
    let mut add = |name: &str, unit: &'static str, what: &str, value: &dyn Fn(&Turn) -> f64| {
        let middle = Estimate::of(turns.iter().map(|turn| value(turn))).context("no turn")?;
        findings.figure(&format!("{scheme}-{name}"), middle.median, unit, what);
        anyhow::Ok(())
    };
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    add("reports", "", "until a rest, after the memory was freed", &|turn| turn.reports as f64)?;
    add("reported", "MiB", "in them", &|turn| mib(turn.reported.bytes))?;
    add("back-p50", "s", "until half of what came back was back", &|turn| turn.back[0])?;
    add("back-p99", "s", "until 99 of a hundred bytes were back", &|turn| turn.back[1])?;
    add("back-last", "s", "until all of it was back", &|turn| turn.back[2])?;
    add("resident", "MiB", "that the host holds at rest", &|turn| mib(turn.resident))?;
    add("cpu-lists", "MiB", "on the lists of single CPUs at rest", &|turn| mib(turn.on_cpu_lists))?;
    add("after-drain", "MiB", "reported after compaction drained them", &|turn| {
        mib(turn.after_drain)
    })?;
    add("page-fault1", "pages/s", "that programs took beside passes", &|turn| turn.faults[0])?;
    add("page-fault2", "pages/s", "of private mappings of a file", &|turn| turn.faults[1])?;
    add("huge-pages", "%", "of the free memory that could be had in huge pages", &|turn| {
        turn.huge_pages
    })?;
    add("unmovable", "", "pageblocks that are unmovable or reclaimable", &|turn| {
        turn.unmovable as f64
    })?;
    let statistics: Vec<&[Statistics; 2]> =
        turns.iter().filter_map(|turn| turn.statistics.as_ref()).collect();
    if statistics.is_empty() {
        return Ok(());
    }
    for (name, what) in RACES {
        let calm = statistics.iter().map(|[before, _]| before.count(name)).sum();
        findings.count(&format!("{scheme}-{name}"), calm, "", what);
        let hostile =
            statistics.iter().map(|[before, after]| after.count(name) - before.count(name));
        let what = format!("{what}, beside programs that churn");
        findings.count(&format!("{scheme}-hostile-{name}"), hostile.sum(), "", &what);
    }
    for name in ["start", "test", "undo", "pull", "put-back", "held"] {
        let costs: Vec<_> = statistics.iter().map(|[before, _]| before.cost(name)).collect();
        let mean = Estimate::of(costs.iter().filter_map(|cost| cost.mean_ns()));
        if let Some(mean) = mean {
            findings.figure(
                &format!("{scheme}-{name}-mean"),
                mean.median,
                "ns",
                &format!("of {name}, a block"),
            );
            let below = costs.iter().filter_map(|cost| cost.below_ns(99)).max().unwrap_or(0);
            findings.figure(
                &format!("{scheme}-{name}-p99"),
                below as f64,
                "ns",
                &format!("99 of a hundred {name} stay below, to the power of two"),
            );
            let most = costs.iter().map(|cost| cost.most_ns).max().unwrap_or(0);
            findings.figure(
                &format!("{scheme}-{name}-longest"),
                most as f64,
                "ns",
                &format!("the longest {name}"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_summed_up() {
        let text = "  pagesets\n    cpu: 0\n              count:    10\n              high:  5\n    cpu: 1\n              count: 32\n";
        assert_eq!(cpu_lists(text), 42);
    }

    #[test]
    fn unmovable_pageblocks_are_counted() {
        let text = "Page block order: 9\n\nNumber of blocks type     Unmovable      Movable  Reclaimable\n\
                    Node 0, zone      DMA            1            7            2\n\
                    Node 0, zone    DMA32            4          500            8\n";
        assert_eq!(unmovable_blocks(text), 15);
    }

    #[test]
    fn time_is_that_of_the_first_sample_low_enough() {
        let sample = |seconds, host_resident_bytes| Sample {
            seconds,
            guest_used_bytes: None,
            host_resident_bytes,
        };
        let samples = [sample(0.0, 100), sample(1.0, 60), sample(2.0, 50), sample(3.0, 20)];
        assert!((back_after(&samples, 100, 20, 50) - 1.0).abs() < 1e-9);
        assert!((back_after(&samples, 100, 20, 100) - 3.0).abs() < 1e-9);
    }
}
