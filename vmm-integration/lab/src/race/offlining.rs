// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory blocks that go offline and online in real Linux, as an experiment: does an acknowledgement
//! that is late hold up more than it must?

use anyhow::{Context as _, Result, ensure};
use guest_agent::race::{HUGE_PAGES, OFFLINE, Offlines, REPORT, RaceReport};

use super::linux::{LinuxRace, Raced};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::faults::device::FaultyDevice;
use crate::faults::plan::{Fault, FaultKind, FaultPlan};
use crate::guest::toolbox;
use crate::parameters::parameters;
use crate::parameters::takes::Whole;
use crate::progress::{Interrupted, interrupted};
use crate::store::{Findings, Verdict, VerdictKind};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::vmm::qemu::{self, Toolbox};

/// Of so many cycles one is made without reporting, to compare with, but at least this many.
const CYCLES_A_CONTROL: u64 = 10;
const LEAST_CONTROLS: u64 = 500;
/// How late: longer than half of the offlines take, by far.
const LATE_MS: u64 = 500;

/// See [`LinuxRace`].
pub(super) struct Offlining;

/// A device or kernel beside which the race runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Beside {
    /// The daemon.
    Daemon,
    /// A device that acknowledges late.
    LateAcknowledgements,
    /// The daemon, with the kernel of Debian's stable release.
    StableKernel,
    /// No reporting.
    NoReporting,
}

impl Case for Beside {}

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        cycles: u64, Whole(1, 100_000_000), 1000, 20_000,
            "times that a block goes offline and online; a tenth more without reporting";
        cpus: u32, Whole(1, 64), 1, 1,
            "CPUs of the guest; an emulated one on few cores is several times as fast as two";
    }
}

impl Experiment for Offlining {
    type Parameters = Settings;
    type Case = Beside;

    fn name(&self) -> &'static str {
        "race-linux"
    }

    fn about(&self) -> &'static str {
        "Races memory offlining with reporting: real Linux takes memory blocks offline and online while it \
         reports, uses memory, allocates gigantic pages, changes page_reporting_order and reloads \
         virtio_balloon. Runs with the daemon, with late acknowledgements, and with the kernel of Debian's \
         stable release; each is compared with the same race without reporting, which is also a case of \
         its own."
    }

    fn repeats(&self, _: &Beside) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<Beside> {
        vec![
            Beside::Daemon,
            Beside::LateAcknowledgements,
            Beside::StableKernel,
            Beside::NoReporting,
        ]
    }

    fn run(&self, case: &Beside, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut toolbox = match toolbox()? {
            Ok(toolbox) => toolbox,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        if *case == Beside::StableKernel {
            toolbox.kernel = qemu::stable_kernel()?;
        }
        let mut race = LinuxRace::new(context.seed, settings.cycles);
        race.cpus = settings.cpus;
        race.reporting = *case != Beside::NoReporting;
        let raced = race_beside(*case, &race, &toolbox, context)?;
        let report = &raced.report;
        ensure!(report.migrated_pages > 0, "no block that was cycled was in use: {report:?}");
        operations(&mut findings, &raced);
        findings.note(format!(
            "every operation was watched: {} times it was looked whether one lasted longer than {:?}",
            raced.looks, race.hang
        ));
        let mut text = format!(
            "{} cycles in Linux {} without damage, complaint or hang",
            report.cycles(),
            raced.kernel
        );
        let offlines = offlines(&raced)?;
        times(&mut findings, "", offlines);
        if race.reporting {
            text += &beside_reports(&mut findings, report, offlines)?;
            let cycles = (race.cycles / CYCLES_A_CONTROL).max(LEAST_CONTROLS).min(race.cycles);
            let control = LinuxRace { reporting: false, cycles, ..race };
            let control = race_beside(Beside::NoReporting, &control, &toolbox, context)?;
            let without = self::offlines(&control)?;
            times(&mut findings, "without-reporting-", without);
            let cycles = control.report.cycles();
            findings.figure(
                "without-reporting-cycles",
                real(cycles),
                "",
                "cycles in a guest without the driver, right after",
            );
            let longest = without.longest.first().map_or(0, |longest| longest.us);
            text += &format!("; without reporting the longest of {cycles} took {} ms", ms(longest));
            findings.note(format!("without reporting: {control}"));
        }
        findings.note(raced.to_string());
        findings.verdict = Some(Verdict { kind: VerdictKind::Survived, text });
        Ok(findings)
    }
}

/// Runs a race in a guest of its own, beside the device of the case.
fn race_beside(
    case: Beside,
    race: &LinuxRace,
    toolbox: &Toolbox,
    context: &Context<'_>,
) -> Result<Raced> {
    let mut look = |report: &RaceReport| {
        context.progress.at(report.cycles(), race.cycles);
        !interrupted()
    };
    let raced = if case == Beside::LateAcknowledgements {
        let late = Fault { times: 0, ms: Some(LATE_MS), ..Fault::new(FaultKind::DelayAck) };
        let device = FaultyDevice::start(FaultPlan::new(vec![late])?)?;
        race.run(toolbox, &device.socket(), &mut look)?
    } else {
        // Nobody connects to it where nothing is reported.
        let daemon = DaemonProcess::spawn(&context.daemon()?, &DaemonOptions::default())?;
        race.run(toolbox, &daemon.socket(), &mut look)?
    };
    if interrupted() {
        return Err(Interrupted.into());
    }
    Ok(raced)
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn real(number: u64) -> f64 {
    number as f64
}

fn ms(us: u64) -> f64 {
    real(us) / 1000.0
}

fn offlines(raced: &Raced) -> Result<&Offlines> {
    raced.report.offlines.as_ref().context("the race has no end")
}

/// What came of each kind of operation.
fn operations(findings: &mut Findings, raced: &Raced) {
    let report = &raced.report;
    findings.count("cycles", report.cycles(), "", "blocks that went offline and came back");
    findings.figure("rate", raced.cycles_per_second(), "1/s", "cycles a second");
    findings.count("moved", report.migrated_pages, "pages", "moved out of the way");
    let checked = real(report.verified_bytes) / f64::from(1 << 20);
    findings.figure("checked", checked, "MiB", "compared, all of it right");
    for (name, operation) in report.operations.iter().filter(|(name, _)| *name != REPORT) {
        for (outcome, times) in &operation.outcomes {
            let what = format!("{name}: ended with {outcome}");
            findings.count(&format!("{name}-{outcome}"), *times, "", &what);
        }
        let name = format!("{name}-longest");
        findings.figure(&name, ms(operation.longest_us), "ms", &format!("the {name}"));
    }
    let beside = report.operation(OFFLINE).failed_beside;
    let huge_pages = beside.iter().filter(|(what, _)| what.contains(HUGE_PAGES));
    findings.figure(
        "offline-failed-beside-huge-pages",
        real(huge_pages.map(|(_, times)| times).sum()),
        "",
        "offlines that failed, and a pool of huge pages was being resized meanwhile",
    );
    findings.figure(
        "offline-failed-beside-nothing",
        real(beside.get("").copied().unwrap_or(0)),
        "",
        "offlines that failed with nothing else under way than threads that use memory",
    );
    for (what, times) in &beside {
        let what = if what.is_empty() { "nothing but threads that use memory" } else { what };
        findings.note(format!("offlining failed {times} times while under way: {what}"));
    }
}

/// How long blocks took to go offline.
fn times(findings: &mut Findings, prefix: &str, offlines: &Offlines) {
    let longest = offlines.longest.first().map_or(0, |longest| longest.us);
    for (name, us, what) in [
        ("p50", offlines.p50_us, "half of the offlines took at most"),
        ("p99", offlines.p99_us, "99 of a hundred offlines took at most"),
        ("p99.9", offlines.p999_us, "999 of a thousand offlines took at most"),
        ("longest", longest, "the longest offline"),
    ] {
        findings.figure(&format!("{prefix}offline-{name}"), ms(us), "ms", what);
    }
}

/// What offlines had to wait for: the driver's reports, by the guest's clock.
fn beside_reports(
    findings: &mut Findings,
    report: &RaceReport,
    offlines: &Offlines,
) -> Result<String> {
    let reports = report.operation(REPORT);
    let count = reports.ok();
    ensure!(count > 0, "the driver reported nothing");
    findings.count("reports", count, "", "reports that the driver had acknowledged");
    let mean = ms(reports.total_us) / real(count);
    findings.figure("acknowledgement-mean", mean, "ms", "the driver waited for on the average");
    findings.figure(
        "acknowledgement-longest",
        ms(reports.longest_us),
        "ms",
        "the longest that the driver waited for an acknowledgement",
    );
    findings.figure(
        "offlines-behind-reports",
        real(offlines.behind_reports_count),
        "",
        "offlines that began while a report was under way, which alone can hold their pages",
    );
    findings.figure(
        "offlines-that-outlasted",
        real(offlines.outlasted),
        "",
        "of these, that ended after its acknowledgement",
    );
    let waited = offlines.behind_reports.first().map_or(0, |first| first.behind_report_us);
    findings.figure(
        "offline-longest-behind-report",
        ms(waited),
        "ms",
        "the most of an offline that passed until the acknowledgement of such a report",
    );
    findings.figure(
        "offline-longest-own",
        ms(offlines.longest_own_us),
        "ms",
        "the longest offline, less that",
    );
    let each = |name, all: &[guest_agent::race::OneOffline]| {
        let each = all.iter().map(|one| {
            format!("{} ({}, {})", ms(one.us), ms(one.behind_report_us), ms(one.beside_reports_us))
        });
        format!(
            "{name}, in ms (until the acknowledgement of the report under way at the start, beside \
             any report): {}",
            each.collect::<Vec<_>>().join(", ")
        )
    };
    findings.note(each("the longest offlines", &offlines.longest));
    findings.note(each(
        "offlines that began longest before an acknowledgement",
        &offlines.behind_reports,
    ));
    let longest = offlines.longest.first().cloned().unwrap_or_default();
    Ok(format!(
        "; the longest acknowledgement took {} ms, the longest offline {} ms, of which {} ms behind a \
         report; behind a report no offline spent more than {} ms",
        ms(reports.longest_us),
        ms(longest.us),
        ms(longest.behind_report_us),
        ms(waited)
    ))
}
