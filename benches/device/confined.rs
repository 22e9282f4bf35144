// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the sandbox costs: two daemons, one with it and one without, that take turns.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use hdrhistogram::Histogram;
use serde::Serialize;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::Attachment;
use vmm_integration::measure::host::pss_bytes;

use crate::start;
use crate::support::{MIB, Processors, REPORTING, TIMEOUT, attach, pin, ratio, spawn};

/// Round trips of each, and how many of them in a row before the other has its turn.
const ROUND_TRIPS: u32 = 40_000;
const TURN: u32 = 2_000;
/// Reports of memory that is there.
const REPORTS: u32 = 200;
const REPORT_BYTES: u64 = 32 * MIB;
const STARTS: u32 = 100;

/// Both values of `--sandbox` that are measured.
const SANDBOXES: [&str; 2] = ["--sandbox=strict", "--sandbox=none"];

/// A figure of the daemon in its sandbox and of the one outside.
#[derive(Serialize)]
struct Pair {
    strict: u64,
    none: u64,
    ratio: f64,
}

impl Pair {
    fn of([strict, none]: [u64; 2]) -> Self {
        Self { strict, none, ratio: ratio(strict, none) }
    }
}

/// What the sandbox costs.
#[derive(Serialize)]
pub(crate) struct Confined {
    round_trip_median_ns: Pair,
    round_trip_p99_ns: Pair,
    /// Until a report of 4 KiB pages that are there is returned.
    report_median_ns: Pair,
    /// From the start of the process to the first connection that it takes.
    start_median_us: Pair,
    /// With a frontend.
    pss_bytes: Pair,
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "The sandbox, taking turns (medians)          strict       none   ratio")?;
        let us = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e6;
        let mut line = |name: &str, pair: &Pair, of: fn(u64) -> f64, unit: &str| {
            let (strict, none) = (of(pair.strict), of(pair.none));
            writeln!(f, "  {name:<38} {strict:10.2} {none:10.2} {:7.3}  {unit}", pair.ratio)
        };
        line("queue round trip", &self.round_trip_median_ns, us, "µs")?;
        line("queue round trip, p99", &self.round_trip_p99_ns, us, "µs")?;
        line("report of 32 MiB in pages of 4 KiB", &self.report_median_ns, us, "µs")?;
        line("from start to listening", &self.start_median_us, |us| ratio(us, 1000), "ms")?;
        line("PSS with a frontend", &self.pss_bytes, |bytes| ratio(bytes, 1024), "KiB")
    }
}

/// Measures it.
///
/// # Errors
/// If a daemon does not start or answer.
pub(crate) fn measure() -> Result<Confined> {
    let processors = Processors::kept()?;
    let mut starts = histograms()?;
    for _ in 0..STARTS {
        for (sandbox, times) in SANDBOXES.iter().zip(&mut starts) {
            times.record(start::one(&[sandbox])?)?;
        }
    }
    let mut ends = Vec::new();
    for sandbox in SANDBOXES {
        let daemon = spawn(&[sandbox])?;
        let guest = attach(&daemon)?;
        ends.push((daemon, guest));
    }
    let pss = [pss_bytes(ends[0].0.pid())?, pss_bytes(ends[1].0.pid())?];
    if processors.are_two() {
        pin(None, 0)?;
        ends.iter().try_for_each(|(daemon, _)| pin(Some(daemon.pid()), 1))?;
    }
    let trips = round_trips(&mut ends)?;
    let reports = reports(&mut ends)?;
    let at = |both: &[Histogram<u64>; 2], quantile| {
        Pair::of([both[0].value_at_quantile(quantile), both[1].value_at_quantile(quantile)])
    };
    Ok(Confined {
        round_trip_median_ns: at(&trips, 0.5),
        round_trip_p99_ns: at(&trips, 0.99),
        report_median_ns: at(&reports, 0.5),
        start_median_us: at(&starts, 0.5),
        pss_bytes: Pair::of(pss),
    })
}

fn histograms() -> Result<[Histogram<u64>; 2]> {
    Ok([Histogram::new(3)?, Histogram::new(3)?])
}

/// Of chains with less than a page, of which nothing is discarded.
fn round_trips(ends: &mut [(DaemonProcess, Attachment)]) -> Result<[Histogram<u64>; 2]> {
    let nothing = [Buffer::writable(Gpa(32 * MIB), 64)];
    let mut times = histograms()?;
    for turn in 0..=ROUND_TRIPS / TURN {
        for ((_, guest), times) in ends.iter_mut().zip(&mut times) {
            for _ in 0..TURN {
                let time = report(guest, &nothing)?;
                // The first turn warms up.
                if turn > 0 {
                    times.record(time)?;
                }
            }
        }
    }
    Ok(times)
}

/// Of memory that is there.
fn reports(ends: &mut [(DaemonProcess, Attachment)]) -> Result<[Histogram<u64>; 2]> {
    let start = 16 * MIB;
    let chain = (0..REPORT_BYTES / MIB).map(|i| Buffer::writable(Gpa(start + i * MIB), 1 << 20));
    let chain: Vec<Buffer> = chain.collect();
    let range = GpaRange::between(Gpa(start), Gpa(start + REPORT_BYTES));
    let mut times = histograms()?;
    for turn in 0..=REPORTS {
        for ((_, guest), times) in ends.iter_mut().zip(&mut times) {
            guest.ram().populate(range)?;
            let time = report(guest, &chain)?;
            if turn > 0 {
                times.record(time)?;
            }
        }
    }
    Ok(times)
}

/// Nanoseconds from the kick until the chain is back.
fn report(guest: &mut Attachment, chain: &[Buffer]) -> Result<u64> {
    guest.ring(REPORTING)?.add_chain(chain)?;
    let begun = Instant::now();
    guest.publish(REPORTING)?;
    ensure!(guest.wait_call(REPORTING, TIMEOUT)?, "the queue does not answer");
    let used = guest.ring(REPORTING)?.pop_used()?;
    let time = begun.elapsed();
    ensure!(used.is_some(), "notified without a used chain");
    Ok(u64::try_from(time.as_nanos())?)
}
