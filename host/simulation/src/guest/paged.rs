// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory of a guest as the model of Linux's page allocator has it, with its reporter: free blocks are
//! reported as on linux-mm in 2019, with isolation, two seconds after they were freed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use guest_driver::page_alloc::{AllocRequest, Geometry, Layout, Mm, Pfn, PfnRange, ZoneId};
use guest_driver::reporting::{Clock, Config, ReportError, ReportSink, Reporter, VirtualClock};

use super::{Memory, Use};

const PAGE: u64 = 4096;
const ZONE: ZoneId = ZoneId(0);
/// The orders that each use asks for, the first that there is: transparent huge pages, read-ahead, and
/// single pages of the balloon.
const ORDERS: [&[u8]; Use::ALL.len()] = [&[9, 4, 0], &[4, 0], &[4, 0], &[0]];

/// Blocks of each use, and which pages the host holds.
pub struct Paged {
    mm: Arc<Mm>,
    reporter: Reporter,
    clock: Arc<VirtualClock>,
    host: Host,
    blocks: [VecDeque<(Pfn, u8)>; Use::ALL.len()],
    used: [u64; Use::ALL.len()],
}

/// Which pages the host holds, a bit each.
struct Host {
    bits: Vec<u64>,
    pages: u64,
}

impl Host {
    fn set(&mut self, range: PfnRange, held: bool) {
        for page in range.step(0) {
            let page = u64::from(page.0);
            let (word, bit) =
                (usize::try_from(page / 64).unwrap_or(usize::MAX), 1_u64 << (page % 64));
            let had = self.bits[word] & bit != 0;
            if had != held {
                self.bits[word] ^= bit;
                self.pages = if held { self.pages + 1 } else { self.pages - 1 };
            }
        }
    }
}

impl ReportSink for Host {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        ranges.iter().for_each(|range| self.set(*range, false));
        Ok(())
    }

    fn settle(&mut self) -> bool {
        true
    }

    fn capacity(&self) -> usize {
        32
    }
}

impl fmt::Debug for Paged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paged").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Memory for Paged {
    fn new(bytes: u64) -> Self {
        let section = u64::from(Geometry::LINUX.section_pages()) * PAGE;
        let sections = usize::try_from(bytes / section).unwrap_or(1).max(1);
        let mm = Arc::new(Mm::new(&Layout::flat(Geometry::LINUX, 1, sections)));
        let clock = Arc::new(VirtualClock::new());
        let reporter = Reporter::with_clock(Arc::clone(&mm), Config::default(), clock.clone());
        let pages = sections * usize::try_from(Geometry::LINUX.section_pages()).unwrap_or(0);
        Self {
            reporter: reporter.unwrap_or_else(|_| unreachable!("the memory is new")),
            mm,
            clock,
            host: Host { bits: vec![0; pages / 64], pages: 0 },
            blocks: Default::default(),
            used: [0; Use::ALL.len()],
        }
    }

    fn bytes(&self) -> u64 {
        self.mm.zone(ZONE).managed_pages() * PAGE
    }

    fn used(&self, by: Use) -> u64 {
        self.used[by as usize]
    }

    fn free(&self) -> u64 {
        let zone = self.mm.zone(ZONE);
        let on_lists: u32 = zone.pcp_sizes().map(|sizes| sizes.count).sum();
        (zone.free_pages() + u64::from(on_lists)).saturating_sub(zone.watermarks().low) * PAGE
    }

    fn take(&mut self, by: Use, bytes: u64) -> u64 {
        let mut taken = 0;
        for order in ORDERS[by as usize] {
            let size = PAGE << order;
            while taken + size <= bytes.next_multiple_of(PAGE) && self.free() >= size {
                // Its slow path drains the per-CPU lists.
                let Ok(pfn) = self.mm.alloc(0, AllocRequest::movable(*order)) else { break };
                // The balloon's pages are told to the host, the others are written.
                self.host.set(PfnRange::block(pfn, *order), by != Use::Balloon);
                self.blocks[by as usize].push_back((pfn, *order));
                taken += size;
            }
        }
        self.used[by as usize] += taken;
        taken
    }

    fn give(&mut self, by: Use, bytes: u64) {
        let mut given = 0;
        while given < bytes {
            // The oldest of a cache, the newest of programs.
            let blocks = &mut self.blocks[by as usize];
            let block = match by {
                Use::Hot | Use::Cold => blocks.pop_front(),
                Use::Anonymous | Use::Balloon => blocks.pop_back(),
            };
            let Some((pfn, order)) = block else { break };
            self.mm.free(0, pfn);
            given += PAGE << order;
        }
        self.used[by as usize] -= given;
    }

    fn report(&mut self, time: Duration) {
        // Per-CPU lists are drained by the work of vmstat, once a second.
        for _ in 0..time.as_secs() {
            if !self.mm.update_vmstat(0) {
                break;
            }
        }
        let end = self.clock.now() + time;
        self.reporter.run_until(&self.clock, end, &mut self.host);
    }

    fn resident(&self) -> u64 {
        self.host.pages * PAGE
    }
}
