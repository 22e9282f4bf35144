// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's life: its memory, and the steps of its command line.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use guest_driver::page_alloc::{
    AllocRequest, Geometry, KernelSemantics, Layout, Mm, Pfn, PfnRange, ZoneId, ZoneLayout,
    ZoneType,
};
use guest_driver::random::Random;
use guest_driver::reporting::{Config, PassStats, RealClock, ReportSink, Reporter, ZeroReports};

use crate::claims::{Claims, Watched};
use crate::contents::Contents;
use crate::device::{Balloon, Reporting};
use crate::options::{Options, Sabotage, Step};
use crate::say;
use crate::start_info::RamRange;
use crate::{OWN_BYTES, clock, paging};

/// Blocks in which the guest uses its memory, an order.
pub(crate) const ORDER: u8 = 9;
const BLOCK_PAGES: u64 = 1 << ORDER;
const SECTION_BYTES: u64 = 128 << 20;
/// The start code has mapped memory below.
const MAPPED: u64 = 4 << 30;
pub(crate) const CPU: usize = 0;
const ZONE: ZoneId = ZoneId(0);
/// How long `grow` waits for the memory.
const GROW_PATIENCE: Duration = Duration::from_secs(60);

/// The guest.
pub(crate) struct Life<'a> {
    pub(crate) options: &'a Options,
    pub(crate) contents: Contents,
    pub(crate) mm: Arc<Mm>,
    pub(crate) reporter: Reporter,
    pub(crate) device: Balloon,
    pub(crate) claims: Claims,
    pub(crate) random: Random,
    /// Blocks in use, and the generation of the pattern in each.
    pub(crate) held: Vec<(Pfn, u16)>,
    pub(crate) generation: u16,
}

/// Does what `options` say, in `ram`.
///
/// # Errors
/// When memory was lost, a check failed, or the device does not work.
pub(crate) fn run(options: &Options, ram: Vec<RamRange>, khz: u64) -> Result<(), String> {
    let end = ram.iter().map(|range| range.end).max().unwrap_or(0);
    paging::map_ram(MAPPED, end);
    let whole = |section: &usize| {
        let start = *section as u64 * SECTION_BYTES;
        let within = |range: &RamRange| range.start <= start && start + SECTION_BYTES <= range.end;
        start >= OWN_BYTES && ram.iter().any(within)
    };
    let sections = 0..(end / SECTION_BYTES) as usize;
    let sections: Vec<usize> = sections.filter(whole).take(options.sections).collect();
    if sections.is_empty() {
        return Err(format!("no whole section of 128 MiB from {OWN_BYTES:#x} on is RAM"));
    }
    let layout = Layout {
        geometry: Geometry::LINUX,
        semantics: KernelSemantics::default(),
        cpus: 1,
        zones: alloc::vec![ZoneLayout {
            node: 0,
            kind: ZoneType::Movable,
            sections: sections.iter().map(|&section| section..section + 1).collect(),
        }],
        shared: Vec::new(),
        sections: end.max(options.grown_end()).div_ceil(SECTION_BYTES) as usize,
        watch_zonelists: false,
    };
    let mm = Arc::new(Mm::new(&layout));
    say!("up sections={} metadata_bytes={} tsc_khz={khz}", sections.len(), mm.metadata_bytes());
    let zero_reports = if options.init { ZeroReports::AsTold } else { ZeroReports::None };
    let config = Config {
        zero_reports,
        tracker: options.tracker,
        holding: options.holding,
        delay: Duration::ZERO,
        ..Config::DEFAULT
    };
    let reporter = Reporter::with_clock(Arc::clone(&mm), config, Arc::new(RealClock::new()))
        .map_err(|error| error.to_string())?;
    let contents = Contents { stride: options.stride };
    let mut life = Life {
        options,
        contents,
        claims: Claims::new(contents, options.sabotage == Some(Sabotage::TrustAll)),
        reporter,
        device: Balloon::attach(options)?,
        random: Random(options.seed),
        held: Vec::new(),
        generation: 0,
        mm,
    };
    for step in &options.steps {
        match *step {
            Step::Verify => life.verify()?,
            Step::Churn { rounds } => life.churn(rounds)?,
            Step::Balloon { bytes } => life.balloon(bytes / 4096)?,
            Step::Reset => life.reset()?,
            Step::Grow { start, bytes } => life.grow(start, bytes)?,
            Step::Serve { limit } => life.serve(limit)?,
        }
    }
    if options.init {
        let Claims { reported_pages, inflated_pages, spared_pages, .. } = life.claims;
        say!(
            "claimed reported_pages={reported_pages} inflated_pages={inflated_pages} \
             spared_pages={spared_pages}"
        );
    }
    life.check_held()
}

impl Life<'_> {
    /// All blocks that are free, allocated. With `init` they are zero: pages that are not known to be are
    /// cleared, and the others are looked at.
    fn take_all(&mut self) -> Result<Vec<Pfn>, String> {
        let Self { mm, claims, contents, options, .. } = self;
        let request = AllocRequest::movable(ORDER);
        if !options.init {
            return Ok(core::iter::from_fn(|| mm.alloc(CPU, request).ok()).collect());
        }
        let mut blocks = Vec::new();
        loop {
            let mut cleared = 0;
            let block = mm.alloc_zeroed(CPU, request, |range| {
                contents.clear(range);
                cleared += u64::from(range.pages());
            });
            let Ok(block) = block else { break };
            claims.allocated(PfnRange::block(block, ORDER), cleared);
            blocks.push(block);
        }
        claims.check()?;
        Ok(blocks)
    }

    fn free(&self, blocks: &[Pfn]) {
        blocks.iter().for_each(|&pfn| self.mm.free(CPU, pfn));
        self.mm.drain_all(ZONE);
    }

    /// Reports until nothing is left to report.
    pub(crate) fn report(&mut self) -> Result<(PassStats, u64), String> {
        let (mut stats, mut passes) = (PassStats::default(), 0);
        while self.reporter.has_work() {
            let Some(queue) = &mut self.device.reporting else { break };
            let claims = &mut self.claims;
            stats += self.reporter.pass(&mut Watched { queue, claims });
            self.claims.check()?;
            passes += 1;
            if stats.failed {
                return Err("a report was not acknowledged".to_string());
            }
        }
        Ok((stats, passes))
    }

    /// The reporting queue, for a step that is nothing without it.
    fn reporting(&mut self) -> Result<&mut Reporting, String> {
        self.device.reporting.as_mut().ok_or_else(|| "the device offers no reporting".to_string())
    }

    fn verify(&mut self) -> Result<(), String> {
        self.reporting()?;
        self.generation += 1;
        let begun = clock::now();
        let blocks = self.take_all()?;
        for &pfn in &blocks {
            self.contents.fill(pfn, ORDER, self.generation);
        }
        let filled = clock::now() - begun;
        let (mut freed, mut held) = (Vec::new(), Vec::new());
        for pfn in blocks {
            if self.random.below(2) == 0 { freed.push(pfn) } else { held.push(pfn) }
        }
        let (Some(&first_held), Some(&first_freed)) = (held.first(), freed.first()) else {
            return Err("too little memory is free".to_string());
        };
        let skipped = usize::from(self.options.sabotage == Some(Sabotage::SkipFreed));
        self.free(&freed[skipped..]);
        let begun = clock::now();
        let (stats, passes) = self.report()?;
        let reported = clock::now() - begun;
        match self.options.sabotage {
            Some(Sabotage::ReportHeld) => {
                let block = [PfnRange::block(first_held, ORDER)];
                let reported = self.reporting()?.report(&block, None);
                reported.map_err(|error| error.to_string())?;
            }
            Some(Sabotage::WriteFreed) => self.contents.fill(first_freed, 0, self.generation),
            Some(Sabotage::SkipFreed) => self.free(&freed[..skipped]),
            Some(Sabotage::TrustAll) | None => {}
        }

        let begun = clock::now();
        let zero = freed.iter().map(|&pfn| self.contents.zero(pfn, ORDER)).sum::<u64>();
        let checked = clock::now() - begun;
        say!(
            "verified freed_pages={} zero_pages={zero} reported_pages={} reports={} passes={passes} fill_ns={} \
             report_ns={} check_ns={}",
            freed.len() as u64 * BLOCK_PAGES,
            stats.pages,
            stats.reports,
            filled.as_nanos(),
            reported.as_nanos(),
            checked.as_nanos()
        );
        self.held.extend(held.into_iter().map(|pfn| (pfn, self.generation)));
        self.check_held()?;
        let freed = freed.len() as u64 * BLOCK_PAGES;
        if zero != freed {
            return Err(format!("{} of {freed} pages that are free hold something", freed - zero));
        }
        self.mm.validate().map_err(|error| format!("the model contradicts itself: {error}"))
    }

    /// Checks the contents of all blocks in use.
    fn check_held(&self) -> Result<(), String> {
        let intact = |&(pfn, generation): &(Pfn, u16)| self.contents.intact(pfn, ORDER, generation);
        let intact = self.held.iter().map(intact).sum::<u64>();
        let held = self.held.len() as u64 * BLOCK_PAGES;
        say!("held pages={held} intact_pages={intact}");
        if intact != held {
            return Err(format!("{} of {held} pages in use are damaged", held - intact));
        }
        Ok(())
    }

    fn churn(&mut self, rounds: u64) -> Result<(), String> {
        for touched in [false, true] {
            let before = self.reporting()?.counters();
            let (mut time, mut stats, mut passes, mut not_zero) =
                (Duration::ZERO, PassStats::default(), 0, 0);
            for _ in 0..rounds {
                self.generation = self.generation.wrapping_add(1);
                let blocks = self.take_all()?;
                if touched {
                    blocks.iter().for_each(|&pfn| self.contents.touch(pfn, ORDER, self.generation));
                }
                self.free(&blocks);
                let begun = clock::now();
                let (made, of_round) = self.report()?;
                time += clock::now() - begun;
                stats += made;
                passes += of_round;
                if touched {
                    let sparse = Contents { stride: usize::MAX };
                    let zero = |&pfn: &Pfn| BLOCK_PAGES - sparse.zero(pfn, ORDER);
                    not_zero += blocks.iter().map(zero).sum::<u64>();
                }
            }
            let waited = self.reporting()?.counters().waited - before.waited;
            say!(
                "churned touched={touched} rounds={rounds} passes={passes} reports={} ranges={} pages={} \
                 report_ns={} waited_ns={}",
                stats.reports,
                stats.ranges,
                stats.pages,
                time.as_nanos(),
                waited.as_nanos()
            );
            if not_zero > 0 {
                return Err(format!("{not_zero} pages that were reported hold something"));
            }
        }
        Ok(())
    }

    fn balloon(&mut self, pages: u64) -> Result<(), String> {
        let mut blocks = Vec::new();
        while (blocks.len() as u64) < pages.div_ceil(BLOCK_PAGES) {
            let block = self.mm.alloc(CPU, AllocRequest::movable(ORDER));
            blocks.push(
                block.map_err(|error| format!("taking {pages} pages for the balloon: {error}"))?,
            );
        }
        self.generation += 1;
        let mut zero = 0;
        let all: Vec<Pfn> =
            blocks.iter().flat_map(|&block| PfnRange::block(block, ORDER).step(0)).collect();
        for &block in &blocks {
            self.contents.fill(block, ORDER, self.generation);
        }
        self.inflate(&all)?;
        self.set_actual(all.len());
        self.device.deflate.tell(&all).map_err(|error| format!("deflating: {error}"))?;
        self.set_actual(0);
        for &block in &blocks {
            zero += self.contents.zero(block, ORDER);
        }
        say!("ballooned pages={} zero_pages={zero}", all.len());
        self.free(&blocks);
        if zero != all.len() as u64 {
            return Err(format!("{} inflated pages hold something", all.len() as u64 - zero));
        }
        Ok(())
    }

    /// Gives pages to the balloon, and looks at those that the device says are zero.
    pub(crate) fn inflate(&mut self, pages: &[Pfn]) -> Result<(), String> {
        let (queue, claims, mm) = (&mut self.device.inflate, &mut self.claims, &self.mm);
        queue
            .tell_and_ask(pages, |pfn| {
                claims.inflated(pfn);
                mm.mark_zero(PfnRange::block(pfn, 0));
            })
            .map_err(|error| format!("inflating: {error}"))?;
        claims.check()
    }

    fn reset(&mut self) -> Result<(), String> {
        self.reporter.suspend();
        self.device = Balloon::attach(self.options)?;
        self.reporter.resume();
        let (stats, _) = self.report()?;
        say!("reset reported_pages={}", stats.pages);
        Ok(())
    }

    /// Waits until memory is plugged in, and takes it online.
    fn grow(&mut self, start: u64, bytes: u64) -> Result<(), String> {
        if !start.is_multiple_of(SECTION_BYTES) || !bytes.is_multiple_of(SECTION_BYTES) {
            return Err(format!("grow: {start:#x}+{bytes:#x}: expected whole sections of 128 MiB"));
        }
        paging::map_ram(start.max(MAPPED), start + bytes);
        say!("waiting for_memory_at={start:#x} bytes={bytes}");
        let begun = clock::now();
        let last = start + bytes - 8;
        while !(is_memory(start) && is_memory(last)) {
            if clock::now() - begun > GROW_PATIENCE {
                return Err(format!("no memory appeared at {start:#x} within {GROW_PATIENCE:?}"));
            }
            core::hint::spin_loop();
        }
        for section in (start / SECTION_BYTES) as usize..((start + bytes) / SECTION_BYTES) as usize
        {
            self.mm.add_section(section, ZONE);
            self.mm.online_block(section).map_err(|error| format!("section {section}: {error}"))?;
        }
        let (stats, _) = self.report()?;
        say!("grown bytes={bytes} reported_pages={}", stats.pages);
        Ok(())
    }
}

/// Whether what is written to `at` stays there.
fn is_memory(at: u64) -> bool {
    let at = at as *mut u64;
    [0x5a5a_a5a5_0f0f_f0f0, 0].into_iter().all(|value| {
        // SAFETY: mapped, and in no use: memory that is not plugged in yet, or not online.
        unsafe {
            at.write_volatile(value);
            at.read_volatile() == value
        }
    })
}
