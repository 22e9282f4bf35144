// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver at work: it follows targets, answers requests for statistics and hints, while the guest allocates,
//! frees, reports, and checks what it holds.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{AllocRequest, Pfn, PfnRange, ZoneId};
use guest_driver::virtio::balloon::BalloonConfig;
use guest_driver::virtio::balloon_driver::{HINT_DONE, HINT_STOP, PFNS_PER_CHAIN, Stat, StatTag};

use crate::life::{CPU, Life, ORDER};
use crate::{clock, say, serial};

/// Blocks in use that are freed or allocated are chosen so that about so many stay free.
const FREE_BLOCKS: u64 = 64;
/// Offsets in the configuration (virtio 1.2, 5.5.4).
const NUM_PAGES: u32 = 0;
const HINT_COMMAND: u32 = 8;

/// What was done.
#[derive(Default)]
struct Counts {
    turns: u64,
    reports: u64,
    reported_pages: u64,
    checked_pages: u64,
    targets: u64,
    statistics: u64,
    hinting_rounds: u64,
}

impl Life<'_> {
    /// Serves until `limit` is over or the host sends a byte.
    ///
    /// # Errors
    /// When memory was lost or the device fails.
    pub(crate) fn serve(&mut self, limit: Duration) -> Result<(), String> {
        let end = clock::now() + limit;
        let mut counts = Counts::default();
        let mut ballooned: Vec<Pfn> = Vec::new();
        let mut command = if self.options.targets {
            self.device.transport.config(HINT_COMMAND)
        } else {
            HINT_STOP
        };
        let mut settled = ballooned.len();
        let statistics = self.statistics();
        if let Some(queue) = &mut self.device.stats {
            queue.offer(&statistics).map_err(|error| format!("statistics: {error}"))?;
        }
        say!("serving");
        while clock::now() < end && serial::received().is_none() {
            counts.turns += 1;
            self.use_memory(&mut counts)?;
            if self.serve_statistics()? {
                counts.statistics += 1;
                say!("statistics answered={}", counts.statistics);
            }
            if self.options.targets {
                let target = self.device.transport.config(NUM_PAGES) as usize;
                self.follow(target, &mut ballooned)?;
                if ballooned.len() == target && settled != target {
                    say!("target pages={target}");
                    settled = target;
                    counts.targets += 1;
                }
                let wanted = self.device.transport.config(HINT_COMMAND);
                if wanted != command {
                    command = wanted;
                    counts.hinting_rounds += u64::from(self.hint(command)?);
                }
            }
            if self.reporter.has_work() {
                let (stats, _) = self.report()?;
                counts.reports += stats.reports;
                counts.reported_pages += stats.pages;
            }
        }
        self.follow_to(0, &mut ballooned)?;
        say!(
            "served turns={} reports={} reported_pages={} checked_pages={} targets={} statistics={} \
             hinting_rounds={}",
            counts.turns,
            counts.reports,
            counts.reported_pages,
            counts.checked_pages,
            counts.targets,
            counts.statistics,
            counts.hinting_rounds
        );
        Ok(())
    }

    /// Allocates and fills a block, or checks and frees one.
    fn use_memory(&mut self, counts: &mut Counts) -> Result<(), String> {
        let free_blocks = self.mm.zone(ZoneId(0)).free_pages() >> ORDER;
        let allocate = self.held.is_empty() || self.random.below(2 * FREE_BLOCKS) < free_blocks;
        if allocate {
            let Ok(pfn) = self.mm.alloc(CPU, AllocRequest::movable(ORDER)) else { return Ok(()) };
            self.generation = self.generation.wrapping_add(1);
            self.contents.fill(pfn, ORDER, self.generation);
            self.held.push((pfn, self.generation));
            return Ok(());
        }
        let index = self.random.index(self.held.len());
        let (pfn, generation) = self.held.swap_remove(index);
        let intact = self.contents.intact(pfn, ORDER, generation);
        if counts.checked_pages == 0 {
            say!("freed pages={intact}");
        }
        counts.checked_pages += intact;
        if intact != 1 << ORDER {
            return Err(format!(
                "{} pages in use at {:#x} are damaged",
                (1 << ORDER) - intact,
                pfn.address()
            ));
        }
        self.mm.free(CPU, pfn);
        self.mm.drain_all(ZoneId(0));
        Ok(())
    }

    /// Inflates or deflates by a chain's worth of pages at most.
    fn follow(&mut self, target: usize, ballooned: &mut Vec<Pfn>) -> Result<(), String> {
        if target > ballooned.len() {
            let most = (target - ballooned.len()).min(PFNS_PER_CHAIN);
            let page = || self.mm.alloc(CPU, AllocRequest::movable(0)).ok();
            let pages: Vec<Pfn> = core::iter::from_fn(page).take(most).collect();
            pages.iter().for_each(|&pfn| self.contents.touch(pfn, 0, self.generation));
            self.inflate(&pages)?;
            ballooned.extend(pages);
        } else if target < ballooned.len() {
            let most = (ballooned.len() - target).min(PFNS_PER_CHAIN);
            let pages = ballooned.split_off(ballooned.len() - most);
            self.device.deflate.tell(&pages).map_err(|error| format!("deflating: {error}"))?;
            let zero = pages.iter().map(|&pfn| self.contents.zero(pfn, 0)).sum::<u64>();
            if zero != pages.len() as u64 {
                return Err(format!("{} inflated pages hold something", pages.len() as u64 - zero));
            }
            pages.iter().for_each(|&pfn| self.mm.free(CPU, pfn));
        } else {
            return Ok(());
        }
        self.set_actual(ballooned.len());
        Ok(())
    }

    fn follow_to(&mut self, target: usize, ballooned: &mut Vec<Pfn>) -> Result<(), String> {
        while ballooned.len() != target {
            self.follow(target, ballooned)?;
        }
        Ok(())
    }

    /// Says how many pages are in the balloon.
    pub(crate) fn set_actual(&self, pages: usize) {
        // The target, which bounds it, has 32 bits.
        let actual = u32::try_from(pages).unwrap_or(u32::MAX);
        self.device.transport.set_config(BalloonConfig::ACTUAL_OFFSET, actual);
    }

    fn statistics(&self) -> Vec<Stat> {
        let zone = self.mm.zone(ZoneId(0));
        let stat = |tag, pages: u64| Stat { tag, value: pages * PAGE_BYTES };
        [
            stat(StatTag::MemFree, zone.free_pages()),
            stat(StatTag::MemTotal, zone.managed_pages()),
            stat(StatTag::MemAvailable, zone.free_pages()),
        ]
        .into()
    }

    /// Answers if the device asks; says whether it did.
    fn serve_statistics(&mut self) -> Result<bool, String> {
        let statistics = self.statistics();
        let Some(queue) = &mut self.device.stats else { return Ok(false) };
        let served = queue.serve(Some(Duration::ZERO), || statistics);
        served.map_err(|error| format!("statistics: {error}"))
    }

    /// Hints all free blocks in the round of `command` and waits until they may be used again; says whether it
    /// was a round.
    fn hint(&mut self, command: u32) -> Result<bool, String> {
        if matches!(command, HINT_STOP | HINT_DONE) {
            return Ok(false);
        }
        let Some(queue) = &mut self.device.hinting else { return Ok(false) };
        let failed = |error| format!("hinting: {error}");
        queue.command(command).map_err(failed)?;
        let block = || self.mm.alloc(CPU, AllocRequest::movable(ORDER)).ok();
        let blocks: Vec<Pfn> = core::iter::from_fn(block).collect();
        for &pfn in &blocks {
            queue.hint(PfnRange::block(pfn, ORDER)).map_err(failed)?;
        }
        queue.command(HINT_STOP).map_err(failed)?;
        while self.device.transport.config(HINT_COMMAND) == command {
            core::hint::spin_loop();
        }
        let pages = blocks.len() << ORDER;
        say!("hinted pages={pages}");
        blocks.iter().for_each(|&pfn| self.mm.free(CPU, pfn));
        self.mm.drain_all(ZoneId(0));
        Ok(true)
    }
}
