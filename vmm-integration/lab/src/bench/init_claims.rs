// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `init-claims`: what a guest saves that does not clear pages which the device says are zero.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{AllocRequest, Pfn, PfnRange, ZoneId};
use guest_driver::ram::{Gpa, GuestRam as _};
use guest_driver::reporting::{Config, Reporter, ZeroReports};
use guest_driver::virtio::balloon_driver::ReportingQueue;

use super::daemon::CountedDaemon;
use super::pairs::{Estimate, orders};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Whole};
use crate::progress;
use crate::store::{Findings, Place};
use vmm_integration::frontend::Line;
use vmm_integration::guest_memory::Ram;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelVm};

/// See the module.
pub(super) struct InitClaims;

const CPU: usize = 0;
/// What the guest allocates, a pageblock.
const ORDER: u8 = 9;
const ZEROES: [u8; 4096] = [0; 4096];

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        memory: u64, Bytes(128 << 20, 16 << 30), 512 << 20, 1 << 30, "memory of the guest";
        rounds: u64, Whole(1, 10_000), 4, 20, "rounds of a turn";
        pairs: usize, Whole(1, 1000), 9, 17,
            "pairs of turns, one with the feature and one without, in an order drawn from the seed";
    }
}

/// The host has pages of 4 KiB behind the guest's memory.
pub(super) struct BasePages;

impl fmt::Display for BasePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("4k")
    }
}

impl Case for BasePages {
    fn place(&self) -> Place {
        Place { table: "with the feature and without".to_owned(), column: self.to_string() }
    }
}

impl Experiment for InitClaims {
    type Parameters = Settings;
    type Case = BasePages;

    fn name(&self) -> &'static str {
        "init-claims"
    }

    fn about(&self) -> &'static str {
        "Measures what a guest saves that does not clear pages which the device says are zero \
         (DEVICE_INIT_REPORTED, proposed): it takes all its memory as zero, writes to each page, frees it and \
         reports it."
    }

    fn repeats(&self, _: &BasePages) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, _: &Settings) -> Vec<BasePages> {
        vec![BasePages]
    }

    #[allow(clippy::cast_precision_loss)] // figures for people
    fn run(&self, _: &BasePages, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for (done, on_first) in orders(context.seed, settings.pairs).into_iter().enumerate() {
            context.progress.at(done as u64, settings.pairs as u64);
            for claims in [on_first, !on_first] {
                let turn = turn(claims, settings, context)?;
                if claims { on.push(turn) } else { off.push(turn) }
            }
        }
        let per_gib =
            |turn: &Turn| turn.time.as_secs_f64() * 1e3 * f64::from(1 << 30) / turn.bytes as f64;
        for (name, turns) in [("off", &off), ("on", &on)] {
            let time = Estimate::of(turns.iter().map(per_gib)).context("no turn")?;
            let cleared: u64 = turns.iter().map(|turn| turn.cleared).sum();
            let bytes: u64 = turns.iter().map(|turn| turn.bytes).sum();
            findings.count(&format!("cleared-{name}"), cleared, "B", "that the guest cleared");
            findings.count(&format!("allocated-{name}"), bytes, "B", "that it allocated as zero");
            findings.figure(
                &format!("time-{name}"),
                time.median,
                "ms/GiB",
                "to allocate and touch",
            );
        }
        let ratio = on.iter().zip(&off).map(|(on, off)| per_gib(on) / per_gib(off));
        let ratio = Estimate::of(ratio).context("no turn")?;
        findings.figure("ratio", ratio.median, "", "the median of the pairs' ratios, on over off");
        findings.figure("ratio-low", ratio.low, "", "lower end of its interval");
        findings.figure("ratio-high", ratio.high, "", "upper end");
        findings.figure("confidence", ratio.confidence * 100.0, "%", "of the interval");
        findings.note(
            "The model knows it of each page. A scheme that knows it of whole free blocks only saves no more.",
        );
        Ok(findings)
    }
}

/// What the allocations of a turn took.
struct Turn {
    bytes: u64,
    cleared: u64,
    time: Duration,
}

fn turn(claims: bool, settings: &Settings, context: &Context<'_>) -> Result<Turn> {
    let args = claims.then(|| "--experimental-init-reported".into());
    let daemon = CountedDaemon::start(context, args.into_iter().collect())?;
    let memory = GuestMemory::flat(settings.memory, 1);
    let mut vm = ModelVm::start(&daemon.socket(), ModelConfig::new(memory))?;
    let mut queue = vm.take_reporting()?;
    let zero_reports = vm.zero_reports()?;
    ensure!(
        (zero_reports == ZeroReports::AsTold) == claims,
        "the feature was negotiated: {zero_reports:?}, expected {claims}"
    );
    let config = Config { delay: Duration::ZERO, zero_reports, ..Config::DEFAULT };
    let mut reporter = Reporter::new(Arc::clone(vm.mm()), config)?;
    let mut turn = Turn { bytes: 0, cleared: 0, time: Duration::ZERO };
    report(&mut reporter, &mut queue)?;
    for round in 0..settings.rounds {
        progress::check()?;
        let start = Instant::now();
        let (blocks, cleared) = take_all(&vm, round)?;
        turn.time += start.elapsed();
        if round > 0 {
            check(vm.ram(), &blocks, round)?;
        }
        let bytes = blocks.len() as u64 * (PAGE_BYTES << ORDER);
        let expected = if claims { 0 } else { bytes };
        ensure!(
            bytes > 0 && cleared == expected,
            "{cleared} of {bytes} bytes were cleared, expected {expected}"
        );
        turn.bytes += bytes;
        turn.cleared += cleared;
        blocks.iter().for_each(|&block| vm.mm().free(CPU, block));
        vm.mm().drain_all(ZoneId(0));
        report(&mut reporter, &mut queue)?;
    }
    drop(vm);
    daemon.finish()?;
    Ok(turn)
}

/// The word of each page that is written to in a round.
fn word(page: Pfn, round: u64) -> Gpa {
    Gpa(page.address() + round * 8 % PAGE_BYTES)
}

/// Allocates all memory as zero and writes to each page of it. Returns the blocks, and the bytes that were
/// cleared.
fn take_all(vm: &ModelVm, round: u64) -> Result<(Vec<Pfn>, u64)> {
    let ram = vm.ram();
    let (mut blocks, mut cleared) = (Vec::new(), 0);
    loop {
        let mut result = Ok(());
        let block = vm.mm().alloc_zeroed(CPU, AllocRequest::movable(ORDER), |range| {
            cleared += u64::from(range.pages()) * PAGE_BYTES;
            result = range.step(0).try_for_each(|page| ram.write(Gpa(page.address()), &ZEROES));
        });
        let Ok(block) = block else { return Ok((blocks, cleared)) };
        result.context("clearing pages")?;
        for page in PfnRange::block(block, ORDER).step(0) {
            ram.write(word(page, round), &u64::MAX.to_le_bytes()).context("using a page")?;
        }
        blocks.push(block);
    }
}

/// Fails if a page holds what was written to it in the round before.
fn check(ram: &Ram, blocks: &[Pfn], round: u64) -> Result<()> {
    for page in blocks.iter().flat_map(|&block| PfnRange::block(block, ORDER).step(0)) {
        let mut old = [0; 8];
        ram.read(word(page, round - 1), &mut old)?;
        ensure!(old == [0; 8], "{page:?} was allocated as zero and holds old data");
    }
    Ok(())
}

fn report(reporter: &mut Reporter, queue: &mut ReportingQueue<Ram, Line>) -> Result<()> {
    while reporter.has_work() {
        ensure!(!reporter.pass(queue).failed, "a report was not acknowledged");
    }
    Ok(())
}
