//! `overhead`: what reporting costs programs that do nothing but fault memory in, after
//! will-it-scale's page_fault1 and page_fault2.
//!
//! Reporting off and on take turns, so that both meet the same noise. Memory that was given back has
//! to be had from the host again, which is the larger part of the cost: of the guest's bookkeeping
//! alone `cargo xtask bench guest` tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use guest_driver::mm::AllocRequest;
use guest_driver::ram::{Gpa, GuestRam};
use guest_driver::reporting::{Config, Reporter};

use super::guests::{Device, Guest, toolbox};
use crate::daemon::{DaemonOptions, DaemonProcess};
use crate::lab::experiment::{Context, Experiment, Repeats};
use crate::lab::parameters::{Kind, Parameter, Settings};
use crate::lab::progress;
use crate::lab::store::Findings;
use crate::model::{GuestMemory, ModelConfig, ModelVm, ReporterThread};

/// See the module.
pub(super) struct Overhead;

const THREADS: usize = 2;
/// Of will-it-scale: each iteration maps, touches and unmaps so much.
const MAPPING_BYTES: u64 = 128 << 20;
const WIND_UP: Duration = Duration::from_secs(10);

const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "guest",
        what: "the model, with page_fault1 (blocks of 2 MiB, as in the series' cover letter) and \
               page_fault2 (single pages); and a real Linux with page_fault1, by its agent",
        kind: Kind::Choices(&["model", "linux"]),
        quick: "model,linux",
        full: "model,linux",
    },
    Parameter {
        name: "memory",
        what: "of the guest",
        kind: Kind::Bytes(512 << 20, 64 << 30),
        quick: "1G",
        full: "4G",
    },
    Parameter {
        name: "turn",
        what: "seconds of a turn; reporting makes a pass every two",
        kind: Kind::Real(0.1, 600.0),
        quick: "3",
        full: "15",
    },
    Parameter {
        name: "turns",
        what: "of each side",
        kind: Kind::Number(1, 1000),
        quick: "3",
        full: "7",
    },
];

impl Experiment for Overhead {
    fn name(&self) -> &'static str {
        "overhead"
    }

    fn about(&self) -> &'static str {
        "Pages that programs fault in a second with reporting off and on, after will-it-scale's \
         page_fault1 and page_fault2."
    }

    fn parameters(&self) -> &'static [Parameter] {
        PARAMETERS
    }

    fn repeats(&self, _: &str) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, settings: &Settings) -> Vec<String> {
        let of = |guest: &&'static str| -> Vec<String> {
            let all: &[&str] = match *guest {
                "model" => &["page_fault1-model", "page_fault2-model"],
                _ => &["page_fault1-linux"],
            };
            all.iter().map(|&case| case.to_owned()).collect()
        };
        settings.choices("guest").iter().flat_map(of).collect()
    }

    fn run(&self, case: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        match case {
            "page_fault1-model" => model(9, settings, context),
            "page_fault2-model" => model(0, settings, context),
            _ => linux(settings, context),
        }
    }
}

/// Lets both sides have their turns and compares them; each gives pages a second.
#[allow(clippy::cast_precision_loss)] // rates
fn compare(
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
    mut turn: impl FnMut(bool, Duration) -> Result<f64>,
) -> Result<()> {
    let time = Duration::from_secs_f64(settings.real("turn"));
    let turns = settings.number("turns");
    let (mut off, mut on) = (Vec::new(), Vec::new());
    // The first turn of each warms up.
    for nr in 0..=turns {
        for (reporting, rates) in [(false, &mut off), (true, &mut on)] {
            progress::check()?;
            context.progress.say(if reporting { "on" } else { "off" });
            let rate = turn(reporting, time)?;
            if nr > 0 {
                rates.push((nr as f64, rate));
            }
        }
        context.progress.at(nr, turns);
    }
    let mean =
        |rates: &[(f64, f64)]| rates.iter().map(|rate| rate.1).sum::<f64>() / rates.len() as f64;
    let spread = |rates: &[(f64, f64)]| {
        let of = || rates.iter().map(|rate| rate.1);
        let (least, most) = (of().fold(f64::INFINITY, f64::min), of().fold(0.0, f64::max));
        (most - least) / mean(rates) * 100.0
    };
    findings.figure("off", mean(&off), "pages/s", "faulted in with reporting off");
    findings.figure("on", mean(&on), "pages/s", "faulted in with reporting on");
    findings.figure(
        "overhead",
        (1.0 - mean(&on) / mean(&off)) * 100.0,
        "%",
        "fewer pages with reporting on",
    );
    findings.figure(
        "spread",
        spread(&off).max(spread(&on)),
        "%",
        "between the best and the worst turn of one side: what is less than this is noise",
    );
    findings.series("off", ("turn", "pages/s"), "faulted in with reporting off", off);
    findings.series("on", ("turn", "pages/s"), "faulted in with reporting on", on);
    Ok(())
}

/// A model guest with a daemon of its own.
struct Side {
    thread: Option<ReporterThread>,
    vm: ModelVm,
    daemon: DaemonProcess,
}

impl Side {
    fn start(reporting: bool, memory: u64, context: &Context<'_>) -> Result<Self> {
        let daemon = DaemonProcess::spawn(&context.daemon()?, &DaemonOptions::default())?;
        let memory = GuestMemory::flat(memory, THREADS);
        let mut vm = ModelVm::start(&daemon.socket(), ModelConfig::new(memory))?;
        let thread = if reporting {
            let reporter = Reporter::new(Arc::clone(vm.mm()), Config::default())?;
            Some(ReporterThread::start(reporter, vm.take_reporting()?)?)
        } else {
            None
        };
        Ok(Self { thread, vm, daemon })
    }

    /// Pages a second that the threads touch.
    #[allow(clippy::cast_precision_loss)] // a rate
    fn turn(&self, order: u8, time: Duration) -> Result<f64> {
        let pages = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|cpu| {
                    let (pages, stop) = (&pages, &stop);
                    scope.spawn(move || self.fault(cpu, order, pages, stop))
                })
                .collect();
            while start.elapsed() < time && !progress::interrupted() {
                std::thread::park_timeout(time.saturating_sub(start.elapsed()));
            }
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(pages.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
    }

    fn fault(&self, cpu: usize, order: u8, pages: &AtomicU64, stop: &AtomicBool) -> Result<()> {
        let mm = self.vm.mm();
        let blocks = MAPPING_BYTES >> (12 + order);
        let mut taken = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..blocks {
                let pfn = mm.alloc(cpu, AllocRequest::movable(order))?;
                for page in 0..1_u64 << order {
                    let at = Gpa(pfn.address() + page * 4096);
                    self.vm.ram().write(at, &at.0.to_ne_bytes())?;
                }
                taken.push(pfn);
                pages.fetch_add(1 << order, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            taken.drain(..).for_each(|pfn| mm.free(cpu, pfn));
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        if let Some(thread) = self.thread.take() {
            thread.stop()?;
        }
        drop(self.vm);
        self.daemon.terminate(WIND_UP)?;
        Ok(())
    }
}

fn model(order: u8, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
    let mut findings = Findings::default();
    let memory = settings.bytes("memory");
    let off = Side::start(false, memory, context)?;
    let on = Side::start(true, memory, context)?;
    compare(settings, context, &mut findings, |reporting, time| {
        if reporting { on.turn(order, time) } else { off.turn(order, time) }
    })?;
    off.end()?;
    on.end()?;
    findings.note(format!(
        "{THREADS} threads touch a word of each page of {} MiB and free it, in a model that \
         remembers with tracker D and holds by isolation; memory of 4 KiB pages on the host.",
        MAPPING_BYTES >> 20
    ));
    Ok(findings)
}

#[allow(clippy::cast_precision_loss)] // a rate
fn linux(settings: &Settings, context: &Context<'_>) -> Result<Findings> {
    let mut findings = Findings::default();
    let toolbox = match toolbox()? {
        Ok(toolbox) => toolbox,
        Err(why) => {
            findings.note(why);
            return Ok(findings);
        }
    };
    context.progress.say("booting");
    let guest = Guest::linux(&toolbox, Device::Ours, settings.bytes("memory"), None, context)?;
    findings.note(guest.describe());
    findings.note(
        "The guest's agent maps 128 MiB, fills it with a pattern and unmaps it. Under emulation the \
         filling takes most of the time, so that the overhead comes out smaller than it is on a \
         processor. page_fault2 maps a file, for which the agent has no command.",
    );
    let Guest::Linux { guest: linux, .. } = &guest else { return Ok(findings) };
    compare(settings, context, &mut findings, |reporting, time| {
        // Off is without the driver.
        linux.agent().unload_module(DRIVER).or_else(not_loaded)?;
        if reporting {
            linux.load_balloon_driver("")?;
        }
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < time && !progress::interrupted() {
            linux.agent().alloc(1, MAPPING_BYTES, 1)?;
            linux.agent().free(1)?;
            bytes += MAPPING_BYTES;
        }
        Ok(bytes as f64 / 4096.0 / start.elapsed().as_secs_f64())
    })?;
    guest.finish().context("ending the guest")?;
    Ok(findings)
}

const DRIVER: &str = "virtio_balloon";

/// A driver that is not there is as good as unloaded.
fn not_loaded(error: anyhow::Error) -> Result<()> {
    let failure = error.downcast_ref::<guest_agent::Failure>();
    match failure.and_then(|failure| failure.errno.as_deref()) {
        Some("ENOENT") => Ok(()),
        _ => Err(error),
    }
}
