//! `footprint`: what the host holds over the time of a workload with phases, and how long that takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use guest_driver::workload::Random;

use super::guests::{Device, Guest, toolbox};
use crate::host::{Sample, Sampler};
use crate::lab::experiment::{Context, Experiment, Repeats};
use crate::lab::parameters::{Kind, Parameter, Settings};
use crate::lab::progress;
use crate::lab::store::Findings;

/// See the module.
pub(super) struct Footprint;

const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// Points of a curve at the most.
const POINTS: usize = 240;
/// The phases: the share of the time that each takes, how many jobs are alive at once, and how large
/// each is, as a share of the memory that the guest can spare. Like a compilation: configuring,
/// compiling, a pause for the first links, compiling on, linking at the end.
const PHASES: [(f64, usize, f64); 5] =
    [(0.08, 1, 0.10), (0.32, 4, 0.16), (0.10, 1, 0.30), (0.20, 4, 0.16), (0.10, 1, 0.70)];
/// The share of the time behind them in which the guest does nothing.
const IDLE: f64 = 0.2;
/// Jobs that a phase has one after the other.
const JOBS_A_LANE: f64 = 6.0;
/// What of the memory the jobs may have, the rest being the guest's own.
const SPARE: f64 = 0.55;

const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "guest",
        what: "a real Linux with reporting off, ours and QEMU's own; the model with reporting off \
               and ours",
        kind: Kind::Choices(&["model", "linux"]),
        quick: "model,linux",
        full: "model,linux",
    },
    Parameter {
        name: "memory",
        what: "of the guest",
        kind: Kind::Bytes(512 << 20, 64 << 30),
        quick: "1G",
        full: "2G",
    },
    Parameter {
        name: "span",
        what: "seconds that the workload takes if nothing holds it up",
        kind: Kind::Real(2.0, 3600.0),
        quick: "40",
        full: "180",
    },
];

/// Something that is done at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Event {
    seconds: f64,
    job: u32,
    /// Bytes that the job takes; none when it ends.
    bytes: Option<u64>,
}

/// The workload: the same for every device.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn trace(seed: u64, memory: u64, span: f64) -> Vec<Event> {
    let mut random = Random(seed);
    let mut part = |from: f64, to: f64| from + (to - from) * (random.below(1000) as f64 / 1000.0);
    let (mut events, mut job, mut start) = (Vec::new(), 0, 0.0);
    for (share, lanes, size) in PHASES {
        let length = share * span;
        for lane in 0..lanes {
            let mut at = start + lane as f64 * length / JOBS_A_LANE / lanes as f64;
            let jobs = if lanes == 1 { 1.0 } else { JOBS_A_LANE };
            while at < start + length * 0.95 {
                let end = (at + length / jobs * part(0.6, 1.1)).min(start + length);
                let bytes = memory as f64 * SPARE * size * part(0.5, 1.0);
                let bytes = (bytes as u64).max(1 << 20) & !0xfff;
                job += 1;
                events.push(Event { seconds: at, job, bytes: Some(bytes) });
                events.push(Event { seconds: end, job, bytes: None });
                at = end + length / jobs * 0.05;
            }
        }
        start += length;
    }
    // A job that ends makes room first.
    events.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.bytes.cmp(&b.bytes)));
    events
}

impl Experiment for Footprint {
    fn name(&self) -> &'static str {
        "footprint"
    }

    fn about(&self) -> &'static str {
        "What the host holds for a guest over the time of a workload with phases, like a \
         compilation, with reporting off, with our daemon, and with QEMU's own device."
    }

    fn parameters(&self) -> &'static [Parameter] {
        PARAMETERS
    }

    fn repeats(&self, _: &str) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<String> {
        let of = |guest: &&'static str| {
            let devices: &[Device] = match *guest {
                "model" => &[Device::Off, Device::Ours],
                _ => &[Device::Off, Device::Ours, Device::Qemu],
            };
            devices.iter().map(|device| format!("{device}-{guest}")).collect::<Vec<_>>()
        };
        settings.choices("guest").iter().flat_map(of).collect()
    }

    #[allow(clippy::cast_precision_loss)] // figures for people
    fn run(&self, case: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let (device, guest) = case.split_once('-').context("no guest")?;
        let device = Device::named(device).context("no device")?;
        let memory = settings.bytes("memory");
        let mut findings = Findings::default();
        context.progress.say("booting");
        let guest = if guest == "model" {
            Guest::model(device, memory, context)?
        } else {
            match toolbox()? {
                Ok(toolbox) => Guest::linux(&toolbox, device, memory, None, context)?,
                Err(why) => {
                    findings.note(why);
                    return Ok(findings);
                }
            }
        };
        findings.note(guest.describe());
        let span = settings.real("span");
        let events = trace(context.seed, memory, span);
        let before = guest.device_cpu_time()?;
        let sampler = Sampler::start(SAMPLE_EVERY, guest.memory()?, || None);
        let runtime = work(&guest, &events, span, context)?;
        let cpu = guest.device_cpu_time()?.saturating_sub(before);
        let samples = sampler.stop()?;
        let discards = guest.finish()?;

        let last = events.iter().map(|event| event.seconds).fold(0.0, f64::max);
        findings.figure(
            "footprint",
            integral(&samples) / 60.0,
            "GiB min",
            "what the host held, added up over the time",
        );
        findings.figure(
            "mean",
            integral(&samples) / samples.last().map_or(1.0, |sample| sample.seconds),
            "GiB",
            "that the host held on the average",
        );
        let resident = |sample: &Sample| sample.host_resident_bytes as f64 / f64::from(1 << 30);
        let peak = samples.iter().map(resident).fold(0.0, f64::max);
        findings.figure("peak", peak, "GiB", "that the host held at the most");
        let end = samples.last().map_or(f64::NAN, resident);
        findings.figure(
            "at-the-end",
            end,
            "GiB",
            "that the host held when the guest was idle again",
        );
        findings.figure("runtime", runtime, "s", "until the last job had ended");
        findings.figure(
            "held-up",
            (runtime / last - 1.0) * 100.0,
            "%",
            "by which it took longer than planned",
        );
        findings.figure("device-cpu", cpu.as_secs_f64(), "CPU s", "of what gives memory back");
        findings.figure("calls", discards.calls as f64, "", "discarding system calls");
        let every = samples.len().div_ceil(POINTS).max(1);
        let points = samples
            .iter()
            .step_by(every)
            .map(|sample| (sample.seconds, resident(sample)))
            .collect();
        findings.series("resident", ("s", "GiB"), "what the host holds for the guest", points);
        Ok(findings)
    }
}

/// Does the events when they are due, and waits for as long as the guest is to be idle then; seconds
/// until the last event.
fn work(guest: &Guest, events: &[Event], span: f64, context: &Context<'_>) -> Result<f64> {
    let start = Instant::now();
    let wait = |seconds: f64| -> Result<(), progress::Interrupted> {
        let due = start + Duration::from_secs_f64(seconds);
        loop {
            progress::check()?;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::park_timeout(left.min(Duration::from_millis(100)));
        }
    };
    let mut alive = BTreeMap::new();
    for (done, event) in events.iter().enumerate() {
        wait(event.seconds)?;
        match event.bytes {
            Some(bytes) => {
                guest.alloc(event.job, bytes, u16::try_from(event.job % 1000)?)?;
                alive.insert(event.job, bytes);
            }
            None => {
                guest.check_and_free(event.job)?;
                alive.remove(&event.job);
            }
        }
        context.progress.say(&format!("{} jobs, {} MiB", alive.len(), sum_mib(&alive)));
        context.progress.at(done as u64, events.len() as u64);
    }
    let runtime = start.elapsed().as_secs_f64();
    context.progress.say("idle");
    wait(runtime + IDLE * span)?;
    Ok(runtime)
}

fn sum_mib(alive: &BTreeMap<u32, u64>) -> u64 {
    alive.values().sum::<u64>() >> 20
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
    fn a_trace_repeats_fits_and_frees_all_that_it_takes() {
        for seed in 0..50 {
            let memory = 1 << 30;
            let events = trace(seed, memory, 60.0);
            assert_eq!(events, trace(seed, memory, 60.0));
            let mut alive: BTreeMap<u32, u64> = BTreeMap::new();
            let mut most = 0;
            for event in &events {
                assert!((0.0..=48.1).contains(&event.seconds), "idle at the end");
                match event.bytes {
                    Some(bytes) => assert_eq!(alive.insert(event.job, bytes), None),
                    None => assert!(alive.remove(&event.job).is_some()),
                }
                most = most.max(alive.values().sum::<u64>());
            }
            assert!(alive.is_empty());
            assert!((memory / 5..memory * 7 / 10).contains(&most), "seed {seed}: {most}");
        }
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
