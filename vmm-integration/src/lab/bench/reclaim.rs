//! `reclaim`: how fast freed memory comes back, and what it costs the host.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::guests::{Device, Guest, toolbox};
use crate::host::{Sample, Sampler, passes, wait_until};
use crate::lab::experiment::{Context, Experiment, Repeats};
use crate::lab::parameters::{Kind, Parameter, Settings};
use crate::lab::progress;
use crate::lab::store::Findings;
use crate::model::{Pages, end_to_end};

/// See the module.
pub(super) struct Reclaim;

const GIB: f64 = 1_073_741_824.0;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Close enough together to see how long the memory falls.
const SAMPLE_EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);
/// Nothing has fallen for this long: all is back. A pass comes every two seconds.
const QUIET: Duration = Duration::from_secs(3);

const BACKINGS: &[&str] = &["4k", "thp", "hugetlb"];

const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "guest",
        what: "the model, timed pass by pass; and a real Linux, where the guest's own two seconds \
               between passes count",
        kind: Kind::Choices(&["model", "linux"]),
        quick: "model,linux",
        full: "model,linux",
    },
    Parameter {
        name: "backing",
        what: "what the memory is made of. hugetlb: root raises the pool meanwhile for the model; \
               Linux takes what is there. thp: only the model, and only where the host allows it",
        kind: Kind::Choices(BACKINGS),
        quick: "4k,thp,hugetlb",
        full: "4k,thp,hugetlb",
    },
    Parameter {
        name: "memory",
        what: "of the guest, of which a real one fills and frees half",
        kind: Kind::Bytes(512 << 20, 64 << 30),
        quick: "1G",
        full: "2G",
    },
    Parameter {
        name: "rounds",
        what: "how often memory is filled and given back",
        kind: Kind::Number(1, 1000),
        quick: "2",
        full: "8",
    },
];

impl Experiment for Reclaim {
    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn about(&self) -> &'static str {
        "How fast freed memory comes back to the host and what CPU time that takes, by backing: our \
         daemon with the model and with Linux, and QEMU's own device with the same Linux."
    }

    fn parameters(&self) -> &'static [Parameter] {
        PARAMETERS
    }

    fn repeats(&self, case: &str) -> Repeats {
        if case.starts_with("linux") { Repeats::ButForTheGuest } else { Repeats::ButForTimes }
    }

    fn cases(&self, settings: &Settings) -> Vec<String> {
        let mut cases = Vec::new();
        for backing in settings.choices("backing") {
            for guest in settings.choices("guest") {
                match *guest {
                    "model" => cases.push(format!("model-{backing}-ours")),
                    // Linux has no transparent huge pages in a memfd unless all of the host has.
                    _ if *backing == "thp" => {}
                    _ => cases.extend(
                        [Device::Ours, Device::Qemu]
                            .map(|device| format!("linux-{backing}-{device}")),
                    ),
                }
            }
        }
        cases
    }

    fn run(&self, case: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut parts = case.split('-');
        let (guest, backing) = (parts.next(), parts.next().unwrap_or_default());
        match guest {
            Some("model") => model(backing, settings, context),
            _ => linux(backing, Device::named(case).context("no device")?, settings, context),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn model(backing: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
    let pages = match backing {
        "4k" => Pages::Base,
        "thp" => Pages::Transparent,
        _ => Pages::Hugetlb,
    };
    let rounds = u32::try_from(settings.number("rounds"))?;
    let measured = end_to_end(&context.daemon()?, &[pages], settings.bytes("memory"), rounds)?;
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
fn linux(
    backing: &str,
    device: Device,
    settings: &Settings,
    context: &Context<'_>,
) -> Result<Findings> {
    let mut findings = Findings::default();
    let toolbox = match toolbox()? {
        Ok(toolbox) => toolbox,
        Err(why) => {
            findings.note(why);
            return Ok(findings);
        }
    };
    let huge = (backing == "hugetlb").then_some(HUGE_PAGE_BYTES);
    let memory = settings.bytes("memory");
    if huge.is_some() && free_huge_pages() < memory / HUGE_PAGE_BYTES {
        findings.note(format!(
            "Not measured: {} free huge pages are needed for the guest, and the host's pool has {}.",
            memory / HUGE_PAGE_BYTES,
            free_huge_pages()
        ));
        return Ok(findings);
    }
    context.progress.say("booting");
    let guest = Guest::linux(&toolbox, device, memory, huge, context)?;
    findings.note(guest.describe());
    if device == Device::Qemu {
        findings.note(
            "QEMU's own device writes a line of trace for each range, which is in its CPU time.",
        );
    }
    // What was free at the start is reported first, and is none of the figures'.
    settle(&guest)?;
    let rounds = settings.number("rounds");
    let filled = memory / 2;
    let (mut back, mut cpu, mut falling, mut longest) = (0, Duration::ZERO, 0.0, 0.0);
    let (mut seconds, mut all_passes) = (Vec::new(), 0);
    for round in 0..rounds {
        progress::check()?;
        context.progress.say("filling");
        guest.alloc(1, filled, u16::try_from(round % 1000)?)?;
        let full = guest.resident_bytes()?;
        let sampler = Sampler::start(SAMPLE_EVERY, guest.memory()?, || None);
        let before = guest.device_cpu_time()?;
        context.progress.say("freed");
        guest.check_and_free(1)?;
        let freed = Instant::now();
        let wanted = full.saturating_sub(filled / 10 * 9);
        wait_until(PATIENCE, SAMPLE_EVERY, || {
            let now = guest.resident_bytes().map_err(|error| error.to_string())?;
            let enough = now <= wanted || progress::interrupted();
            if enough { Ok(()) } else { Err(format!("{now} bytes, {wanted} wanted")) }
        })?;
        seconds.push(freed.elapsed().as_secs_f64());
        settle(&guest)?;
        cpu += guest.device_cpu_time()?.saturating_sub(before);
        let samples = sampler.stop()?;
        back += full.saturating_sub(guest.resident_bytes()?);
        all_passes += passes(&samples);
        let (time, bytes) = fall(&samples);
        falling += time;
        longest += bytes as f64;
        context.progress.at(round + 1, rounds);
    }
    let discards = guest.finish()?;
    let gib = back as f64 / GIB;
    findings.figure("given-back", gib, "GiB", "in all rounds");
    findings.figure(
        "gib-per-second",
        longest / GIB / falling,
        "GiB/s",
        "given back, while it was seen to fall",
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
        "of the host for each TiB that it was given back",
    );
    findings.figure("calls", discards.calls as f64, "", "discarding system calls since the boot");
    findings.figure("ranges", discards.ranges as f64, "", "ranges reported since the boot");
    findings.figure(
        "calls-per-range",
        discards.calls as f64 / discards.ranges as f64,
        "",
        "discarding system calls for each range",
    );
    Ok(findings)
}

fn free_huge_pages() -> u64 {
    let file = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Waits until no more memory comes back.
fn settle(guest: &Guest) -> Result<()> {
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
}
