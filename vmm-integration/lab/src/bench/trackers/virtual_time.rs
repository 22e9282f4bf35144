// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A scheme under churn, in virtual time.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use guest_driver::reporting::{Config, PassStats, Reporter};

use super::churn::{Churn, Programs, SECOND};
use super::guest::{Guest, HostSpeed};
use super::scheme::Scheme;
use super::settings::Settings;
use crate::experiment::Context;
use crate::progress;
use crate::store::{Findings, MemoryMap};

/// Points of a curve and rows of a map at the most.
const POINTS: u64 = 200;
/// A quiet guest that still reports after so many passes does not come to rest.
const PASSES_TO_REST: u32 = 2000;

/// Runs a scheme under a churn and counts.
///
/// # Errors
/// If the reporter does not come to rest, or the run is to end.
#[allow(clippy::cast_precision_loss)] // figures for people
pub(super) fn run(
    scheme: Scheme,
    churn: Churn,
    settings: &Settings,
    context: &Context<'_>,
) -> Result<Findings> {
    let mut guest = new_guest(settings)?;
    let config = config(scheme, settings);
    let mut reporter = Reporter::new(Arc::clone(&guest.mm), config)?;
    settle(&mut guest, &mut reporter)?;
    let blocks = guest.fill(settings.used);
    settle(&mut guest, &mut reporter)?;

    let end = seconds(settings.seconds);
    let delay = seconds(settings.delay);
    let a_second = settings.rate / (4096 << settings.order).max(1);
    let frames = u32::try_from(guest.mm.section_count()).context("too many sections")?
        * guest.mm.geometry().section_pages();
    let swing = settings.swing;
    guest.begin(Programs::new(churn, context.seed, frames, blocks, a_second, swing))?;
    guest.map = (churn == Churn::Bursty).then(MemoryMap::default);

    let mut stats = PassStats::default();
    let mut passes = 0_u64;
    let mut due = None;
    let sample_every = (end / POINTS).max(1);
    let mut next_sample = 0;
    let (mut free, mut given) = (Vec::new(), Vec::new());
    while guest.now < end {
        progress::check()?;
        if due.is_none() && reporter.has_work() {
            due = Some(guest.now + delay);
        }
        let at = guest.next_at().min(due.unwrap_or(u64::MAX)).min(next_sample).min(end);
        guest.advance(at.max(guest.now));
        if guest.now >= next_sample {
            let (_, free_now, given_now) = guest.bytes();
            let x = guest.now as f64 / SECOND as f64;
            free.push((x, free_now as f64 / f64::from(1 << 20)));
            given.push((x, given_now as f64 / f64::from(1 << 20)));
            guest.map_row(&[]);
            next_sample = guest.now + sample_every;
            context.progress.at(guest.now, end);
        }
        if due.is_some_and(|due| due <= guest.now) {
            stats += reporter.pass(&mut guest);
            passes += 1;
            due = None;
        }
    }
    let measured = guest.now;
    guest.end();
    let to_rest = settle(&mut guest, &mut reporter)?;

    let counts = &guest.counts;
    let mut findings = Findings::default();
    let mut figure =
        |name: &str, value: f64, unit: &str, what: &str| findings.figure(name, value, unit, what);
    let reported = counts.reported as f64;
    let us = |us: u64| us as f64 / SECOND as f64;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    figure(
        "duplicate-ratio",
        counts.duplicates as f64 / reported,
        "",
        "reported granules that the host had already, of all that were reported",
    );
    figure("reported", reported, "granules", "reported, duplicates included");
    figure("freed", counts.freed as f64, "granules", "that became free altogether");
    figure(
        "reused-ratio",
        counts.reused as f64 / counts.freed as f64,
        "",
        "granules that became free and were taken again before they were reported",
    );
    figure(
        "back-p50",
        us(counts.back.value_at_quantile(0.5)),
        "s",
        "until a freed granule is back",
    );
    figure(
        "back-p99",
        us(counts.back.value_at_quantile(0.99)),
        "s",
        "until a freed granule is back",
    );
    figure(
        "scanned-per-granule",
        stats.offered as f64 / (stats.pages as f64 / 512.0),
        "",
        "granules that the tracker offered, for each that was reported",
    );
    figure("passes", passes as f64, "", "of the reporter while the programs ran");
    figure("reports", stats.reports as f64, "", "chains to the host");
    figure("granules-a-report", reported / stats.reports as f64, "", "on the average");
    figure(
        "host-calls",
        counts.host_calls as f64,
        "",
        "discards of neighboring memory of a chain as one, each of at most 32 MiB",
    );
    figure("low-memory", stats.low_memory as f64, "", "times that a pass met the low watermark");
    figure("withheld-peak", mib(counts.withheld_peak as f64), "MiB", "held at once at the most");
    figure(
        "withheld-mean",
        mib(counts.withheld / measured as f64),
        "MiB",
        "held, averaged over all of the run: its integral over the time",
    );
    figure(
        "withheld-integral",
        mib(counts.withheld / SECOND as f64),
        "MiB s",
        "memory held times how long",
    );
    figure("failed-allocations", counts.failed as f64, "", "that found no memory");
    let bytes = reporter.tracker_bytes() as f64;
    figure("tracker-bytes", bytes, "B", "of the tracker itself");
    let a_tib = bytes * (1_u64 << 40) as f64 / settings.memory as f64;
    figure("tracker-bytes-a-tib", a_tib, "B", "of the tracker for 1 TiB with memory everywhere");
    figure("passes-to-rest", f64::from(to_rest), "", "until a quiet guest was all reported");
    figure("lost-reports", guest.lost_reports() as f64, "granules", "free and never reported");
    findings.series("free", ("s", "MiB"), "free memory of the guest", free);
    findings.series("given-back", ("s", "MiB"), "memory that the host has", given);
    findings.map = guest.map.take().map(thinned);
    findings.note(
        "Time is virtual. What the reporter computes takes none of it; what the host takes follows \
         from the parameters round-trip and host.",
    );
    Ok(findings)
}

/// A guest as the settings say.
///
/// # Errors
/// If there is no such memory.
pub(super) fn new_guest(settings: &Settings) -> Result<Guest> {
    let gib = f64::from(1 << 30);
    let host =
        HostSpeed { round_trip_us: settings.round_trip, bytes_per_second: settings.host * gib };
    Guest::new(settings.memory, settings.order, host)
}

/// A reporter as the settings say.
pub(super) fn config(scheme: Scheme, settings: &Settings) -> Config {
    Config { batch: settings.batch, ..scheme.config() }
}

/// Passes until there is nothing to report, how many.
///
/// # Errors
/// If that does not come.
pub(super) fn settle(guest: &mut Guest, reporter: &mut Reporter) -> Result<u32> {
    guest.drain();
    let mut passes = 0;
    while reporter.has_work() {
        ensure!(passes < PASSES_TO_REST, "a quiet guest still reports after {passes} passes");
        progress::check()?;
        reporter.pass(guest);
        passes += 1;
    }
    Ok(passes)
}

/// Every so many rows, so that no more than [`POINTS`] are left.
fn thinned(map: MemoryMap) -> MemoryMap {
    let every = map.rows.len().div_ceil(usize::try_from(POINTS).unwrap_or(1)).max(1);
    MemoryMap {
        cell_bytes: map.cell_bytes,
        times_us: map.times_us.into_iter().step_by(every).collect(),
        rows: map.rows.into_iter().step_by(every).collect(),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded by the parameter
fn seconds(value: f64) -> u64 {
    (value * 1e6) as u64
}
