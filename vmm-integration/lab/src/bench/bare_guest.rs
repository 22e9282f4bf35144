// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `bare-guest`: what bare metal costs or saves the guest model, beside the same model in this process.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{AllocRequest, Pfn, ZoneId};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::reporting::{Config, Holding, PassStats, Reporter, TrackerKind};
use guest_driver::virtio::balloon::feature;

use super::daemon::CountedDaemon;
use super::pairs::{Estimate, orders};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::prepared;
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Whole};
use crate::progress;
use crate::store::{Findings, Place};
use vmm_integration::bare_guest::{Line, image};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::bare::{Absent, BareSpec, absent};
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelVm};
use vmm_integration::vmm::{ALL, GuestKind, Vmm};

/// See the module.
pub(super) struct BareGuest;

/// What the guest allocates, frees and reports: a pageblock.
const ORDER: u8 = 9;
const CPU: usize = 0;
const SECTION_BYTES: u64 = 128 << 20;
/// How often the daemon's count of reports is read, which bounds how exact the first report's time is.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long it may take until the daemon has counted a report.
const FIRST_PATIENCE: Duration = Duration::from_secs(120);
/// How long a guest may take.
const PATIENCE: Duration = Duration::from_secs(1200);

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        memory: u64, Bytes(384 << 20, 24 << 30), 512 << 20, 1 << 30,
            "memory of the bare guest, 256 MiB more than its model and the model in a process have";
        rounds: u64, Whole(1, 10_000), 4, 20,
            "rounds of a turn in which all memory is taken, freed and reported, untouched and then touched";
        pairs: usize, Whole(1, 1000), 3, 9,
            "pairs of turns, a boot each, in an order drawn from the seed";
    }
}

/// A VMM that boots the bare guest.
pub(super) struct Machine(&'static dyn Vmm);

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl Case for Machine {
    fn place(&self) -> Place {
        Place { table: "against the model in a process".to_owned(), column: self.to_string() }
    }
}

impl Experiment for BareGuest {
    type Parameters = Settings;
    type Case = Machine;

    fn name(&self) -> &'static str {
        "bare-guest"
    }

    fn about(&self) -> &'static str {
        "Compares the model as a bare guest with the model in a process, beside the same daemon: time to the \
         first report, reports a second, and the guest's own time for a report."
    }

    fn repeats(&self, _: &Machine) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<Machine> {
        let bare = |vmm: &&&dyn Vmm| vmm.guests().contains(&GuestKind::Bare);
        ALL.iter().filter(bare).map(|vmm| Machine(*vmm)).collect()
    }

    #[allow(clippy::cast_precision_loss)] // figures for people
    fn run(&self, case: &Machine, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        let version = match prepared(case.0) {
            Ok(version) => version,
            // Not each VMM must be here. The tests say which must.
            Err(error) => {
                findings.note(format!("{case} is not on this machine: {error:#}"));
                return Ok(findings);
            }
        };
        let image = image()?;
        let bytes = image.metadata().with_context(|| format!("{}", image.display()))?.len();
        findings.figure("image", bytes as f64, "B", "of the guest's image, an ELF");
        let mut turns = Vec::new();
        for (done, model_first) in orders(context.seed, settings.pairs).into_iter().enumerate() {
            progress::check()?;
            context.progress.at(done as u64, settings.pairs as u64);
            match pair(case, settings, context, model_first) {
                Ok(pair) => turns.push(pair),
                Err(error) if error.is::<Absent>() => {
                    findings.note(format!("{case} cannot: {error:#}"));
                    return Ok(findings);
                }
                Err(error) => return Err(error),
            }
        }
        let pages = turns.first().map_or(0, |(bare, _)| bare.untouched.pages + bare.touched.pages);
        findings.count("pages", pages, "4 KiB", "that each guest reported in each turn");
        for (name, unit, what, value) in FIGURES {
            let of = |turn: fn(&(Turn, Turn)) -> &Turn| {
                Estimate::of(turns.iter().map(|pair| value(turn(pair)))).context("no turn")
            };
            let (bare, model) = (of(|pair| &pair.0)?, of(|pair| &pair.1)?);
            let ratio = turns.iter().map(|(bare, model)| value(bare) / value(model));
            let ratio = Estimate::of(ratio).context("no turn")?;
            findings.figure(name, bare.median, unit, what);
            findings.figure(&format!("{name}-model"), model.median, unit, "the same, of the model");
            findings.figure(
                &format!("{name}-ratio"),
                ratio.median,
                "",
                "the median of the pairs' ratios, bare guest over model",
            );
            findings.figure(
                &format!("{name}-ratio-low"),
                ratio.low,
                "",
                "lower end of its interval",
            );
            findings.figure(&format!("{name}-ratio-high"), ratio.high, "", "upper end");
        }
        findings.note(format!(
            "{version}. {} pairs; the bare guest looks at its ring, the model waits for an event. \
             The first report is seen within {LOOK_EVERY:?}.",
            settings.pairs
        ));
        Ok(findings)
    }
}

/// What a boot and its rounds took.
#[derive(Clone, Copy, Debug)]
struct Turn {
    first_report: Duration,
    untouched: Churn,
    touched: Churn,
}

/// The reports of the rounds of a kind.
#[derive(Clone, Copy, Debug)]
struct Churn {
    reports: u64,
    pages: u64,
    reporting: Duration,
    waited: Duration,
}

type Figure = (&'static str, &'static str, &'static str, fn(&Turn) -> f64);

const FIGURES: [Figure; 4] = [
    ("first-report", "ms", "from the start of the VMM to the first report", |turn| {
        turn.first_report.as_secs_f64() * 1e3
    }),
    ("untouched", "reports/s", "of memory that the host does not hold", |turn| {
        turn.untouched.a_second()
    }),
    ("touched", "reports/s", "of memory that the host holds, in pages of 4 KiB", |turn| {
        turn.touched.a_second()
    }),
    ("own-time", "us/report", "of the guest, without its wait for the device; untouched", |turn| {
        turn.untouched.own_us()
    }),
];

#[allow(clippy::cast_precision_loss)] // figures for people
impl Churn {
    fn a_second(&self) -> f64 {
        self.reports as f64 / self.reporting.as_secs_f64()
    }

    fn own_us(&self) -> f64 {
        self.reporting.saturating_sub(self.waited).as_secs_f64() * 1e6 / self.reports as f64
    }

    fn of_line(line: &Line) -> Result<Self> {
        let time = |name| line.number(name).map(Duration::from_nanos);
        Ok(Self {
            reports: line.number("reports")?,
            pages: line.number("pages")?,
            reporting: time("report_ns")?,
            waited: time("waited_ns")?,
        })
    }
}

/// A turn of the bare guest and one of the model with as much memory.
fn pair(
    case: &Machine,
    settings: &Settings,
    context: &Context<'_>,
    model_first: bool,
) -> Result<(Turn, Turn)> {
    // The first section is the guest's program. QEMU's machine keeps the end of the last one to itself.
    let sections = settings.memory / SECTION_BYTES - 2;
    let model = || model_turn(sections * SECTION_BYTES, settings.rounds, context);
    let first = if model_first { Some(model()?) } else { None };
    let bare = bare_turn(case.0, sections, settings, context)?;
    let model = first.map_or_else(model, Ok)?;
    for (bare, model) in [(bare.untouched, model.untouched), (bare.touched, model.touched)] {
        ensure!(
            bare.pages == model.pages && bare.pages > 0,
            "the bare guest reported {} pages and the model {}",
            bare.pages,
            model.pages
        );
    }
    Ok((bare, model))
}

/// The same for each guest, so that both do the same.
const TRACKER: TrackerKind = TrackerKind::SectionBit;
const HOLDING: Holding = Holding::Isolate;

fn bare_turn(
    vmm: &dyn Vmm,
    sections: u64,
    settings: &Settings,
    context: &Context<'_>,
) -> Result<Turn> {
    let args = vmm.daemon_args().iter().map(Into::into).collect();
    let daemon = CountedDaemon::start(context, args)?;
    let words = [
        format!("tracker={TRACKER}"),
        format!("holding={HOLDING}"),
        format!("sections={sections}"),
        format!("do=churn:{}", settings.rounds),
    ];
    let spec = BareSpec {
        memory_bytes: settings.memory,
        growth_bytes: 0,
        hugetlb_page_bytes: None,
        files: 1,
        socket: daemon.socket(),
        command_line: words.into(),
    };
    let begun = Instant::now();
    let mut guest = vmm.boot_bare(&spec)?;
    let device = guest.console().wait_for("device", PATIENCE)?;
    if device.number("acked")? & feature::REPORTING == 0 {
        return absent("it offers its guest no reporting");
    }
    let first_report = first_report(&daemon, begun)?;
    let lines = guest.finish(PATIENCE)?;
    daemon.finish()?;
    let churns = lines.iter().filter(|line| line.name == "churned").map(Churn::of_line);
    let churns: Vec<Churn> = churns.collect::<Result<_>>()?;
    let [untouched, touched] = churns[..] else {
        bail!("expected two lines of churning, got {lines:?}")
    };
    Ok(Turn { first_report, untouched, touched })
}

fn model_turn(bytes: u64, rounds: u64, context: &Context<'_>) -> Result<Turn> {
    let daemon = CountedDaemon::start(context, Vec::new())?;
    let begun = Instant::now();
    let vm = ModelVm::start(&daemon.socket(), ModelConfig::new(GuestMemory::flat(bytes, 1)))?;
    let turn = std::thread::scope(|scope| -> Result<Turn> {
        let first_report = scope.spawn(|| first_report(&daemon, begun));
        let churns = model_churns(vm, rounds);
        let first_report = first_report.join().map_err(|_| anyhow!("a panic"))??;
        let (untouched, touched) = churns?;
        Ok(Turn { first_report, untouched, touched })
    })?;
    daemon.finish()?;
    Ok(turn)
}

/// Does what the bare guest does in its step `churn`.
fn model_churns(mut vm: ModelVm, rounds: u64) -> Result<(Churn, Churn)> {
    let mut queue = vm.take_reporting()?;
    let config =
        Config { tracker: TRACKER, holding: HOLDING, delay: Duration::ZERO, ..Config::DEFAULT };
    let mut reporter = Reporter::new(Arc::clone(vm.mm()), config)?;
    let mut churn = |touched: bool| -> Result<Churn> {
        let before = queue.counters().waited;
        let (mut stats, mut reporting) = (PassStats::default(), Duration::ZERO);
        for _ in 0..rounds {
            progress::check()?;
            let block = || vm.mm().alloc(CPU, AllocRequest::movable(ORDER)).ok();
            let blocks: Vec<Pfn> = std::iter::from_fn(block).collect();
            for pfn in blocks.iter().filter(|_| touched) {
                let range = GpaRange::new(Gpa(pfn.address()), PAGE_BYTES << ORDER);
                vm.ram().populate(range.context("a block beyond all memory")?)?;
            }
            blocks.iter().for_each(|&pfn| vm.mm().free(CPU, pfn));
            vm.mm().drain_all(ZoneId(0));
            let start = Instant::now();
            while reporter.has_work() {
                stats += reporter.pass(&mut queue);
                ensure!(!stats.failed, "a report was not acknowledged");
            }
            reporting += start.elapsed();
        }
        let waited = queue.counters().waited.saturating_sub(before);
        Ok(Churn { reports: stats.reports, pages: stats.pages, reporting, waited })
    };
    Ok((churn(false)?, churn(true)?))
}

/// The time from `begun` until the daemon has counted a report.
fn first_report(daemon: &CountedDaemon, begun: Instant) -> Result<Duration> {
    wait_until(FIRST_PATIENCE, LOOK_EVERY, || match daemon.reports() {
        Ok(0) => Err("the guest made no report".to_owned()),
        Ok(_) => Ok(begun.elapsed()),
        Err(error) => Err(format!("{error:#}")),
    })
}
