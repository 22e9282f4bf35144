// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A load, and what is measured under it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::timed::{Clock, Timed, chance};
use crate::address_space::{AddressSpace, Pages, Reclaim, VmaSetup};
use crate::oom_reaper::reaper::{Config, Event, Reaper};
use crate::oom_reaper::scheme::Scheme;
use crate::random::Random;
use crate::waits::Waits;

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u64 = 256;

/// Processes that are killed one after the other until enough memory is free.
///
/// Each VMA consists of chunks. A chunk is of interest to a device of its own by `coverage`, and the device's
/// lock is held by `duty`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// VMAs of a process.
    pub vmas: u64,
    /// Chunks of a VMA.
    pub chunks: u64,
    /// Pages of a chunk.
    pub chunk_pages: u64,
    /// Share of the chunks that are of interest.
    pub coverage: f64,
    /// Share of the time in which a device's lock is held.
    pub duty: f64,
    /// How long it is held at a time, on average. Zero: each attempt finds it independently.
    pub hold: Duration,
    /// Processes that can be killed.
    pub victims: u64,
    /// Share of the memory of all of them that is needed.
    pub needed: f64,
    /// Time from the kill until the reaper begins (2 s since Linux 5.18).
    pub delay: Duration,
    /// Time between two attempts (a tenth of a second).
    pub pause: Duration,
    /// Time to free a page.
    pub per_page: Duration,
    /// Attempts until the reaper gives up.
    pub attempts: u32,
}

impl Default for Load {
    /// Linux's times, and a page in no time.
    fn default() -> Self {
        Self {
            vmas: 16,
            chunks: 1,
            chunk_pages: PAGES_PER_MIB,
            coverage: 0.5,
            duty: 0.5,
            hold: Duration::ZERO,
            victims: 64,
            needed: 1.0,
            delay: Duration::from_secs(2),
            pause: Duration::from_millis(100),
            per_page: Duration::ZERO,
            attempts: 10,
        }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Pages of the processes that were killed.
    pub reapable: u64,
    /// Of them, pages that were freed.
    pub freed: u64,
    /// Of these, pages that were freed by a device after the reaper had gone on.
    pub freed_later: u64,
    /// Processes that were killed.
    pub kills: u64,
    /// Of them, processes that would have lived if all memory of those before had been freed.
    pub extra_victims: u64,
    /// Attempts of the reaper.
    pub attempts: u64,
    /// Starts that failed.
    pub busy: u64,
    /// Time from the first kill until a MiB was freed, if that much ever was.
    pub first_mib: Option<Duration>,
    /// Time from the first kill until enough was freed, or nothing was left to kill.
    pub took: Duration,
}

impl Measured {
    /// Share of the reapable that is freed.
    pub fn share(&self) -> f64 {
        ratio(self.freed, self.reapable)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    let number = |of: u64| f64::from(u32::try_from(of).unwrap_or(u32::MAX));
    number(part) / number(whole)
}

impl Load {
    /// Pages of a process.
    pub fn pages(&self) -> u64 {
        self.vmas * self.chunks * self.chunk_pages
    }

    /// Pages that must be freed.
    fn wanted(&self) -> u64 {
        let pages = self.victims * self.pages();
        (1..=pages).rev().find(|&some| ratio(some, pages) <= self.needed).unwrap_or(0)
    }

    /// Kills processes and reaps them with `scheme` until enough is free.
    ///
    /// A scheme that waits for locks is not measured: it waits as long as the holder does, which may be
    /// without end. Its result is empty.
    pub fn measure(&self, scheme: Scheme, seed: u64) -> Measured {
        let mut measured = Measured::default();
        if scheme == Scheme::AlwaysBlock {
            return measured;
        }
        let (clock, mut random) = (Arc::new(Clock::default()), Random(seed));
        let wanted = self.wanted();
        while measured.kills < self.victims && measured.freed < wanted {
            self.kill(scheme, &clock, &mut random, &mut measured);
        }
        let least = wanted.div_ceil(self.pages().max(1));
        measured.extra_victims = measured.kills.saturating_sub(least);
        measured.took = clock.now();
        measured
    }

    fn kill(
        &self,
        scheme: Scheme,
        clock: &Arc<Clock>,
        random: &mut Random,
        measured: &mut Measured,
    ) {
        let waits = Arc::new(Waits::new());
        let pages = Arc::new(Pages::new(Arc::new(Reclaim::new(&waits, 0))));
        let (mm, devices) = self.address_space(&waits, &pages, clock, random);
        clock.pass(self.delay);
        let config = Config {
            attempts: self.attempts,
            chunk_pages: self.chunk_pages,
            ..Config::new(scheme)
        };
        let reaper = Reaper { party: waits.party("the reaper"), config, flaw: None };
        let (before, mut by_reaper) = (measured.freed, 0);
        let mut first_mib = measured.first_mib;
        let mut on_event = |event| match event {
            Event::Freed(count) => {
                for _ in 0..count {
                    clock.pass(self.per_page);
                }
                by_reaper += count;
                if before + by_reaper >= PAGES_PER_MIB {
                    first_mib.get_or_insert(clock.now());
                }
            }
            Event::Sleeps => clock.pass(self.pause),
        };
        let reaped = reaper.reap(&mm, &mut on_event);
        if devices.iter().filter(|device| device.settle()).count() > 0 {
            clock.pass(self.hold);
        }
        measured.first_mib = first_mib;
        measured.freed += pages.freed();
        if measured.freed >= PAGES_PER_MIB {
            measured.first_mib.get_or_insert(clock.now());
        }
        measured.freed_later += pages.freed() - reaped.freed;
        measured.reapable += self.pages();
        measured.kills += 1;
        measured.attempts += u64::from(reaped.attempts);
        measured.busy += reaped.busy;
    }

    fn address_space(
        &self,
        waits: &Arc<Waits>,
        pages: &Arc<Pages>,
        clock: &Arc<Clock>,
        random: &mut Random,
    ) -> (AddressSpace, Vec<Arc<Timed>>) {
        let size = self.chunks * self.chunk_pages;
        // A page between two VMAs.
        let starts = || (0..self.vmas).map(|number| number * (size + 1));
        let vmas = starts().map(|start| VmaSetup::private(start..start + size)).collect();
        let mut mm = AddressSpace::new(waits, Arc::clone(pages), vmas);
        let mut devices = Vec::new();
        for start in starts() {
            for chunk in 0..self.chunks {
                if !chance(random, self.coverage) {
                    continue;
                }
                let from = start + chunk * self.chunk_pages;
                let range = from..from + self.chunk_pages;
                let own = Random(random.number());
                let device = Timed::new(clock, range.clone(), (self.duty, self.hold), own);
                let device = Arc::new(device);
                devices.push(Arc::clone(&device));
                mm.subscribe(device, &[range]);
            }
        }
        (mm, devices)
    }
}
