// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `reclaim`: how fast freed memory comes back, and what it costs the host.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::guests::{Device, Subject};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{GuestKind, describe};
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Several, Whole};
use crate::progress;
use crate::store::{Findings, Place};
use vmm_integration::measure::host::{Sample, Sampler, passes, wait_until};
use vmm_integration::measure::hugetlb::Pool;
use vmm_integration::vmm::model::{Pages, end_to_end};
use vmm_integration::vmm::qemu;

/// See the module.
pub(super) struct Reclaim;

const GIB: f64 = 1_073_741_824.0;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Close enough together to see how long the memory falls.
const SAMPLE_EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);
/// Nothing has fallen for this long: all is back. A pass comes every two seconds.
const QUIET: Duration = Duration::from_secs(3);

/// See the parameter `rounds`.
const HUGE_ROUNDS: u32 = 16;

/// The memory behind a guest.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
pub(super) enum Backing {
    /// Pages of 4 KiB.
    #[strum(serialize = "4k")]
    Base,
    /// Transparent huge pages.
    #[strum(serialize = "thp")]
    Transparent,
    /// Huge pages of 2 MiB from the host's pool.
    #[strum(serialize = "hugetlb")]
    Hugetlb,
}

fn backings() -> Vec<Backing> {
    vec![Backing::Base, Backing::Transparent, Backing::Hugetlb]
}

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        guest: Vec<GuestKind>, Several::any(), GuestKind::ALL.to_vec(), GuestKind::ALL.to_vec(),
            "guests to measure: the model, timed pass by pass, and a real Linux, whose two seconds between \
             passes count";
        backing: Vec<Backing>, Several::any(), backings(), backings(),
            "pages behind the guest's memory. hugetlb needs root, to raise the host's pool meanwhile. thp \
             is for the model only, on a host that allows it; user-mode-linux has 4k";
        memory: u64, Bytes(512 << 20, 64 << 30), 1 << 30, 2 << 30,
            "memory of the guest; Linux fills and frees half of it";
        rounds: u32, Whole(1, 1000), 2, 5,
            "times that memory is filled and freed; the model does so sixteen times as often with huge \
             pages, where a round takes milliseconds";
    }
}

/// A guest with its device.
pub(super) struct Reclaimed {
    guest: GuestKind,
    backing: Backing,
    device: Device,
}

impl Reclaimed {
    fn column(&self) -> String {
        format!("{}-{}", self.backing, self.device)
    }
}

impl fmt::Display for Reclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.guest, self.column())
    }
}

impl Case for Reclaimed {
    fn place(&self) -> Place {
        Place { table: self.guest.to_string(), column: self.column() }
    }
}

impl Experiment for Reclaim {
    type Parameters = Settings;
    type Case = Reclaimed;

    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn about(&self) -> &'static str {
        "Measures how fast the host reclaims freed memory and how much CPU time that takes, by backing: \
         our daemon with the model and with Linux, and QEMU's own device with the Linux in QEMU."
    }

    fn repeats(&self, case: &Reclaimed) -> Repeats {
        case.guest.repeats()
    }

    fn cases(&self, settings: &Settings) -> Vec<Reclaimed> {
        let of = |backing: Backing| {
            settings.guest.iter().flat_map(move |&guest| {
                let devices: &[Device] = match (guest, backing) {
                    (GuestKind::Model, _) | (GuestKind::UserModeLinux, Backing::Base) => {
                        &[Device::Ours]
                    }
                    (GuestKind::Qemu, Backing::Base | Backing::Hugetlb) => {
                        &[Device::Ours, Device::Qemu]
                    }
                    // Linux has transparent huge pages in a memfd only if the whole host has, and
                    // user-mode Linux has its memory in a file of tmpfs.
                    (GuestKind::Qemu, Backing::Transparent)
                    | (GuestKind::UserModeLinux, Backing::Transparent | Backing::Hugetlb) => &[],
                };
                devices.iter().map(move |&device| Reclaimed { guest, backing, device })
            })
        };
        settings.backing.iter().flat_map(|&backing| of(backing)).collect()
    }

    fn run(
        &self,
        case: &Reclaimed,
        settings: &Settings,
        context: &Context<'_>,
    ) -> Result<Findings> {
        match case.guest {
            GuestKind::Model => model(case.backing, settings, context),
            GuestKind::Qemu | GuestKind::UserModeLinux => linux(case, settings, context),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn model(backing: Backing, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
    let pages = match backing {
        Backing::Base => Pages::Base,
        Backing::Transparent => Pages::Transparent,
        Backing::Hugetlb => Pages::Hugetlb,
    };
    let huge = if pages == Pages::Base { 1 } else { HUGE_ROUNDS };
    let rounds = settings.rounds * huge;
    let measured = end_to_end(&context.daemon()?, &[pages], settings.memory, rounds)?;
    let mut findings = Findings::default();
    for backed in measured.backings {
        let Some(figures) = backed.figures else {
            let why = backed.not_measured.unwrap_or_default();
            findings.note(format!("Not measured: {why}."));
            continue;
        };
        findings.figure(
            "gib-per-second",
            figures.gib_per_second,
            "GiB/s",
            "given back, from the beginning of a pass to its end",
        );
        findings.figure(
            "host-gib-per-second",
            figures.host_gib_per_second,
            "GiB/s",
            "that the host's kernel alone would make of the same ranges",
        );
        let shares = figures.shares;
        for (name, value, what) in [
            ("share-of-guest", shares.isolating, "of the time: finding, isolating, undoing"),
            ("share-of-ring", shares.ring, "of the time: descriptors, notifications, the daemon"),
            ("share-of-host", shares.host, "of the time: punching holes"),
        ] {
            findings.figure(name, value * 100.0, "%", what);
        }
        let tib = figures.bytes as f64 / GIB / 1024.0;
        findings.figure(
            "cpu-per-tib",
            figures.daemon_cpu_seconds / tib,
            "CPU s",
            "of the host for each TiB that it was given back",
        );
    }
    Ok(findings)
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn linux(case: &Reclaimed, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
    let Reclaimed { guest, backing, device } = *case;
    let mut findings = Findings::default();
    if let Err(why) = guest.available()? {
        findings.note(format!("Not measured: {why}."));
        return Ok(findings);
    }
    let huge = (backing == Backing::Hugetlb).then_some(HUGE_PAGE_BYTES);
    let memory = settings.memory;
    let _pool = match huge.map(|page_bytes| Pool::with_free(page_bytes, memory)).transpose() {
        Ok(pool) => pool,
        Err(why) => {
            findings.note(format!("Not measured: {why:#}."));
            return Ok(findings);
        }
    };
    context.progress.say("booting");
    let guest = match huge {
        None => Subject::boot(guest, device, memory, context)?,
        Some(_) => Subject::linux(&qemu::available()?, device, memory, huge, context)?,
    };
    findings.note(format!("{}.", describe(guest.guest())?));
    // What was free at the start is reported first, and is none of the figures'.
    settle(&guest)?;
    guest.count_calls(false)?;
    let rounds = u64::from(settings.rounds);
    let filled = memory / 2;
    let (mut back, mut cpu, mut busy, mut falling, mut fell) = (0, Duration::ZERO, 0.0, 0.0, 0);
    let (mut seconds, mut all_passes) = (Vec::new(), 0);
    let mut huge_pages = None;
    let daemon = guest.daemon_cpu_time()?;
    for round in 0..rounds {
        let one = give_back(&guest, filled, round, context)?;
        seconds.push(one.seconds_to_90);
        busy += one.cpu.as_secs_f64();
        cpu += cpu_while_falling(&one.samples);
        back += one.bytes;
        huge_pages = one.huge_bytes;
        all_passes += passes(&one.samples);
        let (time, bytes) = fall(&one.samples);
        falling += time;
        fell += bytes;
        context.progress.at(round + 1, rounds + 1);
    }
    let daemon = daemon.zip(guest.daemon_cpu_time()?).map(|(before, now)| now - before);
    // Counted in a round of its own: QEMU writes a line for each range, which takes CPU time.
    guest.count_calls(true)?;
    let before = guest.discards()?;
    give_back(&guest, filled, rounds, context)?;
    let discards = guest.discards()?.since(before);
    guest.finish()?;
    let gib = back as f64 / GIB;
    findings.figure("given-back", gib, "GiB", "in all rounds");
    findings.figure(
        "gib-per-second",
        fell as f64 / GIB / falling,
        "GiB/s",
        "given back, while it was seen to fall, by looks 5 ms apart",
    );
    findings.figure(
        "seconds-to-90",
        seconds.iter().sum::<f64>() / seconds.len() as f64,
        "s",
        "from the free until 90 % were back",
    );
    findings.figure(
        "passes",
        all_passes as f64 / rounds as f64,
        "",
        "of the guest until all was back, a round",
    );
    findings.figure(
        "cpu-per-tib",
        cpu.as_secs_f64() / (gib / 1024.0),
        "CPU s",
        "of the host for each TiB that it was given back: QEMU's main thread if it is QEMU's guest, and our \
         daemon where that is the device, while memory was seen to fall",
    );
    findings.figure(
        "cpu-per-tib-all",
        busy / (gib / 1024.0),
        "CPU s",
        "the same from the free until all is back: QEMU's main thread has a guest's timers as well",
    );
    if let Some(daemon) = daemon {
        let what = "our daemon's alone, in all that time";
        let each = daemon.as_secs_f64() / (gib / 1024.0);
        findings.figure("cpu-per-tib-daemon", each, "CPU s", what);
    }
    if let Some(bytes) = huge_pages {
        let what = "of the filled guest, in the host's transparent huge pages: none if it is 4k";
        findings.figure("transparent-huge", bytes as f64 / GIB, "GiB", what);
    }
    findings.figure("calls", discards.calls as f64, "", "discarding system calls in a round");
    findings.figure("ranges", discards.ranges as f64, "", "ranges reported in a round");
    findings.figure(
        "calls-per-range",
        discards.calls as f64 / discards.ranges as f64,
        "",
        "discarding system calls for each range",
    );
    Ok(findings)
}

/// A round: memory is filled, checked and freed, and comes back.
struct Round {
    bytes: u64,
    seconds_to_90: f64,
    /// Of the device.
    cpu: Duration,
    /// With the device's CPU time so far instead of what the guest uses, in nanoseconds.
    samples: Vec<Sample>,
    /// What was transparent huge pages when it was filled.
    huge_bytes: Option<u64>,
}

fn give_back(subject: &Subject, filled: u64, round: u64, context: &Context<'_>) -> Result<Round> {
    progress::check()?;
    context.progress.say("filling");
    let guest = subject.guest();
    guest.alloc(1, filled, u16::try_from(round % 1000)?)?;
    guest.expect_intact(1)?;
    let full = guest.resident_bytes()?;
    let huge_bytes = subject.huge_bytes()?;
    let sampler = Sampler::start(SAMPLE_EVERY, guest.memory()?, subject.device_cpu_nanoseconds());
    context.progress.say("freed");
    let start = Instant::now();
    let mut seconds_to_90 = 0.0;
    let cpu = cpu_while(subject, || {
        guest.free(1)?;
        let wanted = full.saturating_sub(filled / 10 * 9);
        wait_until(PATIENCE, SAMPLE_EVERY, || {
            let now = guest.resident_bytes().map_err(|error| error.to_string())?;
            let enough = now <= wanted || progress::interrupted();
            if enough { Ok(()) } else { Err(format!("{now} bytes, {wanted} wanted")) }
        })?;
        seconds_to_90 = start.elapsed().as_secs_f64();
        settle(subject)
    })?;
    let bytes = full.saturating_sub(guest.resident_bytes()?);
    Ok(Round { bytes, seconds_to_90, cpu, samples: sampler.stop()?, huge_bytes })
}

/// CPU time of the device while something is done.
fn cpu_while(subject: &Subject, act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let before = subject.device_cpu_time()?;
    act()?;
    Ok(subject.device_cpu_time()?.saturating_sub(before))
}

/// Waits until no more memory comes back.
fn settle(subject: &Subject) -> Result<()> {
    let guest = subject.guest();
    let mut lowest = guest.resident_bytes()?;
    let mut since = Instant::now();
    wait_until(PATIENCE, Duration::from_millis(20), || {
        let now = guest.resident_bytes().map_err(|error| error.to_string())?;
        // A few pages come and go in a guest that does nothing.
        if now + (1 << 20) < lowest {
            (lowest, since) = (now, Instant::now());
        }
        let quiet = since.elapsed() >= QUIET || progress::interrupted();
        if quiet { Ok(()) } else { Err("it still falls".to_owned()) }
    })?;
    if progress::interrupted() {
        bail!(progress::Interrupted);
    }
    Ok(())
}

/// For how long memory fell, in seconds, and by how many bytes.
fn fall(samples: &[Sample]) -> (f64, u64) {
    samples.windows(2).fold((0.0, 0), |(time, bytes), pair| {
        let [before, after] = pair else { return (time, bytes) };
        let fell = before.host_resident_bytes.saturating_sub(after.host_resident_bytes);
        if fell == 0 {
            return (time, bytes);
        }
        (time + after.seconds - before.seconds, bytes + fell)
    })
}

/// CPU time of the device between looks that memory fell between, and to the one behind: a thread's
/// account is brought up to date now and then.
fn cpu_while_falling(samples: &[Sample]) -> Duration {
    let mut fell_before = false;
    let nanoseconds = samples.windows(2).fold(0, |sum, pair| {
        let [before, after] = pair else { return sum };
        let fell = after.host_resident_bytes < before.host_resident_bytes;
        let counts = fell || fell_before;
        fell_before = fell;
        match (before.guest_used_bytes, after.guest_used_bytes) {
            (Some(before), Some(after)) if counts => sum + after.saturating_sub(before),
            _ => sum,
        }
    });
    Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_that_it_falls_counts() {
        let sample = |seconds, host_resident_bytes| Sample {
            seconds,
            guest_used_bytes: None,
            host_resident_bytes,
        };
        let samples =
            [sample(0.0, 9), sample(1.0, 9), sample(1.5, 5), sample(3.0, 6), sample(3.5, 4)];
        let (time, bytes) = fall(&samples);
        assert!((time - 1.0).abs() < 1e-9);
        assert_eq!(bytes, 6);
    }
    #[test]
    fn cpu_time_counts_while_memory_falls_and_one_sample() {
        let sample = |host_resident_bytes, nanoseconds| Sample {
            seconds: 0.0,
            guest_used_bytes: Some(nanoseconds),
            host_resident_bytes,
        };
        let samples =
            [sample(9, 0), sample(9, 100), sample(5, 107), sample(5, 110), sample(5, 1000)];
        assert_eq!(cpu_while_falling(&samples), Duration::from_nanos(10));
        assert_eq!(cpu_while_falling(&samples[..2]), Duration::ZERO);
    }
}
