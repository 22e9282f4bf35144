// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `footprint`: what the host holds over the time of a workload with phases, and how long that takes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use guest_driver::workload::{Pace, Replay, Trace};

use super::daemon::Discards;
use super::footprint_trace::{Event, pieces, trace};
use super::guests::{Device, Subject};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{GuestKind, describe};
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Real, Several, Whole};
use crate::progress::{self, wait_for};
use crate::store::{Findings, Place};
use vmm_integration::guest::Guest;
use vmm_integration::measure::host::{Sample, Sampler};

/// See the module.
pub(super) struct Footprint;

const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Points of a curve at the most.
const POINTS: usize = 240;
/// Time in which the guest does nothing at the end: two passes and a little.
const IDLE: Duration = Duration::from_secs(5);

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        guest: Vec<GuestKind>, Several::any(), GuestKind::ALL.to_vec(), GuestKind::ALL.to_vec(),
            "guests to measure: each with reporting off and with our daemon, and Linux in QEMU also with \
             QEMU's own device";
        memory: u64, Bytes(512 << 20, 64 << 30), 1 << 30, 2 << 30, "memory of the guest";
        span: f64, Real(2.0, 3600.0), 12.0, 40.0,
            "approximate seconds of the workload; each of its two pauses takes a fifth";
        rounds: u64, Whole(1, 100), 1, 3, "repetitions, each in a newly booted guest";
    }
}

/// A device with a guest.
pub(super) struct Held {
    device: Device,
    guest: GuestKind,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.device, self.guest)
    }
}

impl Case for Held {
    fn place(&self) -> Place {
        Place { table: self.guest.to_string(), column: self.device.to_string() }
    }
}

impl Experiment for Footprint {
    type Parameters = Settings;
    type Case = Held;

    fn name(&self) -> &'static str {
        "footprint"
    }

    fn about(&self) -> &'static str {
        "Measures how much memory the host holds for a guest during a workload like a compilation \
         (compilers side by side, a pause, linking, a pause), with reporting off, with our daemon, and \
         with QEMU's own device."
    }

    fn repeats(&self, _: &Held) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<Held> {
        let of = |&guest: &GuestKind| {
            let devices: &[Device] = match guest {
                GuestKind::Model | GuestKind::UserModeLinux => &[Device::Off, Device::Ours],
                GuestKind::Qemu => &[Device::Off, Device::Ours, Device::Qemu],
            };
            devices.iter().map(move |&device| Held { device, guest })
        };
        settings.guest.iter().flat_map(of).collect()
    }

    fn run(&self, case: &Held, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let Held { device, guest } = *case;
        let Settings { memory, span, rounds, .. } = *settings;
        let mut findings = Findings::default();
        if let Err(why) = guest.available()? {
            findings.note(format!("Not measured: {why}."));
            return Ok(findings);
        }
        let trace = trace(context.seed, memory, span);
        let mut runs = Vec::new();
        for round in 0..rounds {
            progress::check()?;
            context.progress.say("booting");
            let subject = Subject::boot(guest, device, memory, context)?;
            if round == 0 {
                findings.note(format!("{}.", describe(subject.guest())?));
            }
            runs.push(run(subject, &trace, context)?);
            context.progress.at(round + 1, rounds);
        }
        findings.note(match guest {
            GuestKind::Model => {
                "The trace is replayed block by block, on a thread for each CPU; contents are checked \
                 when they are freed."
            }
            GuestKind::Qemu | GuestKind::UserModeLinux => {
                "The same trace as the model's: blocks that live from the same time to the same time \
                 are one mapping of the guest's agent, filled page by page, and checked when it is \
                 unmapped. One after the other."
            }
        });
        let planned = trace.duration().as_secs_f64();
        findings.figure("planned", planned, "s", "until all is freed if nothing holds it up");
        tell(runs, &mut findings)?;
        Ok(findings)
    }
}

/// One run of the workload.
struct Run {
    samples: Vec<Sample>,
    /// Until all was freed.
    seconds: f64,
    /// Of the device.
    cpu: Duration,
    discards: Discards,
    /// Blocks of the model's trace that were not to be had.
    refused: u64,
}

impl Run {
    /// What the host held, added up over the time.
    fn gib_minutes(&self) -> f64 {
        integral(&self.samples) / 60.0
    }

    fn held(&self) -> impl Iterator<Item = f64> {
        self.samples.iter().map(|sample| gib(sample.host_resident_bytes))
    }
}

fn run(guest: Subject, trace: &Trace, context: &Context<'_>) -> Result<Run> {
    let before = (guest.device_cpu_time()?, guest.discards()?);
    let sampler = Sampler::start(SAMPLE_EVERY, guest.guest().memory()?, guest.used_bytes());
    let start = Instant::now();
    let mut refused = 0;
    match &guest {
        Subject::Model { guest, .. } => {
            context.progress.say("replaying");
            let done = Replay::new(guest.vm().mm(), guest.vm().ram(), trace).run(Pace::Recorded)?;
            refused = done.failed;
        }
        real => ask(real.guest(), &pieces(trace), start, context)?,
    }
    let seconds = start.elapsed().as_secs_f64();
    context.progress.say("idle");
    wait_for(Instant::now() + IDLE)?;
    let cpu = guest.device_cpu_time()?.saturating_sub(before.0);
    let discards = guest.discards()?.since(before.1);
    let samples = sampler.stop()?;
    guest.finish()?;
    Ok(Run { samples, seconds, cpu, discards, refused })
}

/// Asks a real guest for each piece when it is due.
fn ask(guest: &dyn Guest, events: &[Event], start: Instant, context: &Context<'_>) -> Result<()> {
    let mut in_use = BTreeMap::new();
    for event in events {
        wait_for(start + event.at)?;
        match event.bytes {
            Some(bytes) => {
                guest.alloc(event.name, bytes, u16::try_from(event.name % 1000)?)?;
                in_use.insert(event.name, bytes);
            }
            None => {
                guest.expect_intact(event.name)?;
                guest.free(event.name)?;
                in_use.remove(&event.name);
            }
        }
        context.progress.say(&format!("{} MiB in use", in_use.values().sum::<u64>() >> 20));
    }
    Ok(())
}

/// Figures of all runs, and curves of the one in the middle.
#[allow(clippy::cast_precision_loss)] // figures for people
fn tell(mut runs: Vec<Run>, findings: &mut Findings) -> Result<()> {
    let rounds = runs.iter().zip(1..).map(|(run, nr)| (f64::from(nr), run.gib_minutes()));
    findings.series(
        "rounds",
        ("round", "GiB min"),
        "the footprint of each round",
        rounds.collect(),
    );
    runs.sort_by(|a, b| a.gib_minutes().total_cmp(&b.gib_minutes()));
    let mut figure = |name: &str, unit: &str, what: &str, of: &dyn Fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (values.first(), values.last()) else { return };
        findings.figure(name, values[values.len() / 2], unit, what);
        if matches!(name, "footprint" | "runtime") {
            findings.figure(&format!("{name}-least"), *least, unit, "the least of all rounds");
            findings.figure(&format!("{name}-most"), *most, unit, "the most of all rounds");
        }
    };
    figure("footprint", "GiB min", "what the host held, added up over the time", &Run::gib_minutes);
    figure("runtime", "s", "until all was freed", &|run| run.seconds);
    figure("mean", "GiB", "that the host held on the average", &|run| {
        integral(&run.samples) / run.samples.last().map_or(f64::NAN, |sample| sample.seconds)
    });
    figure("peak", "GiB", "that the host held at the most", &|run| run.held().fold(0.0, f64::max));
    figure("at-the-end", "GiB", "that the host held when the guest was idle again", &|run| {
        run.held().last().unwrap_or(f64::NAN)
    });
    figure("device-cpu", "CPU s", "of what gives memory back", &|run| run.cpu.as_secs_f64());
    figure("calls", "", "discarding system calls", &|run| run.discards.calls as f64);
    figure("refused", "", "blocks of the model's trace that were not to be had", &|run| {
        run.refused as f64
    });
    figure("reported", "GiB", "that the guest reported", &|run| gib(run.discards.bytes));

    let middle = runs.get(runs.len() / 2).context("no round")?;
    let every = middle.samples.len().div_ceil(POINTS).max(1);
    let curve = |of: &dyn Fn(&Sample) -> Option<u64>| {
        let point = |sample: &Sample| Some((sample.seconds, gib(of(sample)?)));
        middle.samples.iter().step_by(every).filter_map(point).collect()
    };
    let units = ("s", "GiB");
    let resident = curve(&|sample| Some(sample.host_resident_bytes));
    findings.series("resident", units, "what the host holds for the guest", resident);
    let used = curve(&|sample| sample.guest_used_bytes);
    findings.series("used", units, "what the guest has in use, by its own account", used);
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// GiB times seconds.
#[allow(clippy::cast_precision_loss)] // figures for people
fn integral(samples: &[Sample]) -> f64 {
    let piece = |pair: &[Sample]| match pair {
        [before, after] => {
            let mean = (before.host_resident_bytes as f64 + after.host_resident_bytes as f64) / 2.0;
            mean * (after.seconds - before.seconds)
        }
        _ => 0.0,
    };
    samples.windows(2).map(piece).sum::<f64>() / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curves_are_of_the_round_in_the_middle() {
        let run = |gib: u64| {
            let sample = |seconds| Sample {
                seconds,
                guest_used_bytes: Some(1 << 29),
                host_resident_bytes: gib << 30,
            };
            let samples = vec![sample(0.0), sample(60.0)];
            Run {
                samples,
                seconds: 50.0,
                cpu: Duration::ZERO,
                discards: Discards::default(),
                refused: 0,
            }
        };
        let mut findings = Findings::default();
        tell(vec![run(3), run(1), run(2)], &mut findings).unwrap();
        let value = |name: &str| findings.figures[name].value;
        assert_eq!((value("footprint-least"), value("footprint-most")), (1.0, 3.0));
        assert_eq!((value("footprint"), value("runtime"), value("peak")), (2.0, 50.0, 2.0));
        assert_eq!(findings.series["resident"].points, [(0.0, 2.0), (60.0, 2.0)]);
        assert_eq!(findings.series["used"].points, [(0.0, 0.5), (60.0, 0.5)]);
        assert_eq!(findings.series["rounds"].points, [(1.0, 3.0), (2.0, 1.0), (3.0, 2.0)]);
        assert!(tell(Vec::new(), &mut Findings::default()).is_err());
    }

    #[test]
    fn the_integral_is_of_trapezoids() {
        let sample = |seconds, gib: u64| Sample {
            seconds,
            guest_used_bytes: None,
            host_resident_bytes: gib << 30,
        };
        let area = integral(&[sample(0.0, 0), sample(2.0, 2), sample(3.0, 2)]);
        assert!((area - 4.0).abs() < 1e-9, "{area}");
    }
}
