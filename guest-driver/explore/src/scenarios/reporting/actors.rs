// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who takes part in a scenario.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::Invariant;
use crate::scenarios::reporting::scenario::Patience;
use crate::scenarios::reporting::shadow::Shadow;
use guest_driver::page_alloc::{
    AllocRequest, IsolateMode, MigrateType, Mm, MovePages, OfflineError, Pfn, PfnRange, ZoneId,
};
use guest_driver::sync::{self, Lock};
use std::sync::Arc;

/// How often an offliner that nobody disturbs any more may find its range not free.
const PATIENCE: usize = 20;

/// What all actors of a run share.
pub struct World {
    /// The model.
    pub mm: Arc<Mm>,
    /// What is known beside it.
    pub shadow: Shadow,
    /// What each CPU has allocated.
    tables: Vec<Lock<Vec<Owned>>>,
    /// The next content to write.
    contents: AtomicU64,
    /// Actors that are not through.
    pub(crate) running: AtomicUsize,
    /// An allocation of one page can only fail for pages that are withheld.
    pub(crate) never_out_of_memory: bool,
}

#[derive(Clone, Copy, Debug)]
struct Owned {
    head: Pfn,
    order: u8,
    content: u64,
}

impl Owned {
    fn range(self) -> PfnRange {
        PfnRange::block(self.head, self.order)
    }
}

/// A small generator, so that a seed repeats (Steele's splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_u64() % bound.max(1) as u64).unwrap_or(0)
    }
}

impl World {
    /// A world around `mm`, in which `cpus` CPUs allocate.
    pub fn new(mm: Arc<Mm>, cpus: usize, never_out_of_memory: bool) -> Self {
        let geometry = mm.geometry();
        let pages = geometry.section_range(mm.section_count()).start.0;
        Self {
            mm,
            shadow: Shadow::new(pages),
            tables: (0..cpus).map(|_| Lock::new(Vec::new())).collect(),
            contents: AtomicU64::new(1),
            running: AtomicUsize::new(0),
            never_out_of_memory,
        }
    }

    /// The CPU that those run on who have none of their own.
    fn other_cpu(&self) -> usize {
        self.tables.len()
    }

    fn content(&self) -> u64 {
        self.contents.fetch_add(1, Ordering::Relaxed)
    }

    fn over(&self) -> bool {
        self.shadow.violation().is_some()
    }

    /// A CPU that allocates blocks of `orders` and frees them, `steps` times, with at most `most`
    /// of them at once; at the end it frees all that it has.
    pub(crate) fn cpu(&self, cpu: usize, plan: &CpuPlan, mut random: Random) {
        let mut owned = 0;
        for _ in 0..plan.steps {
            if self.over() {
                return;
            }
            if owned < plan.most && (owned == 0 || random.below(2) == 0) {
                let order = plan.orders[random.below(plan.orders.len())];
                let mut request = AllocRequest::movable(order);
                if plan.unmovable && random.below(2) == 0 {
                    request.migratetype = MigrateType::Unmovable;
                }
                owned += usize::from(self.allocate(cpu, request));
            } else {
                self.free(cpu, random.below(owned));
                owned -= 1;
            }
        }
        for _ in 0..owned {
            self.free(cpu, 0);
        }
    }

    fn allocate(&self, cpu: usize, request: AllocRequest) -> bool {
        let order = request.order;
        let Ok(head) = self.mm.alloc(cpu, request) else {
            if order == 0 && self.never_out_of_memory {
                let what = format!("CPU {cpu} got no page, of many that are free or withheld");
                self.shadow.violate(Invariant::NoOomWhileWithheld, what);
            }
            return false;
        };
        let user = u32::try_from(cpu).unwrap_or(u32::MAX);
        let page = Owned { head, order, content: self.content() };
        self.shadow.allocated(page.range(), user, page.content);
        // Who moves pages finds them by their owner, and by then they are in the table.
        self.tables[cpu].lock().push(page);
        self.mm.set_owner(head, user);
        true
    }

    /// Frees a block of the largest order, as somebody will sooner or later.
    pub(crate) fn nudge(&self) {
        if self.allocate(0, AllocRequest::movable(self.mm.geometry().max_order)) {
            self.free(0, 0);
        }
    }

    fn free(&self, cpu: usize, index: usize) {
        let page = self.tables[cpu].lock().remove(index);
        self.shadow.freed(page.range(), page.content);
        self.mm.free(cpu, page.head);
    }

    /// Takes a memory block off- and online again.
    pub(crate) fn offliner(&self, block: usize, patience: Patience) {
        let range = self.mm.geometry().section_range(block);
        for _ in 0..3 {
            let tries = AtomicUsize::new(0);
            let alone = AtomicUsize::new(0);
            let give_up = || {
                if self.running.load(Ordering::Relaxed) == 1
                    && alone.fetch_add(1, Ordering::Relaxed) == PATIENCE
                {
                    let what = format!("{range:?} does not get free, with nobody else there");
                    self.shadow.violate(Invariant::OffliningEnds, what);
                }
                let tries = tries.fetch_add(1, Ordering::Relaxed);
                self.over() || (patience == Patience::Short && tries > 1)
            };
            match self.mm.offline_block(block, self, &give_up) {
                Ok(()) => {
                    self.shadow.forget(range);
                    sync::yield_now();
                    if let Err(error) = self.mm.online_block(block) {
                        let what = format!("{range:?} does not come online: {error}");
                        self.shadow.violate(Invariant::OffliningEnds, what);
                    }
                    return;
                }
                Err(OfflineError::Busy) => sync::yield_now(),
                Err(_) => return,
            }
        }
    }

    /// Allocates `range` as a whole, twice, and frees it.
    pub(crate) fn contig(&self, range: PfnRange, mode: IsolateMode) {
        for _ in 0..2 {
            if self.mm.alloc_contig_range(range, mode, self).is_ok() {
                let content = self.content();
                self.shadow.allocated(range, u32::MAX, content);
                sync::yield_now();
                self.shadow.freed(range, content);
                self.mm.free_contig_range(self.other_cpu(), range);
            }
            sync::yield_now();
        }
    }

    /// Isolates `range` and lets it go again, as one does who is refused further on.
    pub(crate) fn isolator(&self, range: PfnRange) {
        for _ in 0..2 {
            if self.mm.start_isolate_page_range(range, IsolateMode::Other).is_ok() {
                self.shadow.isolate(range);
                sync::yield_now();
                let blocks = self.mm.geometry().pageblock_order;
                if let Some(block) = range.step(blocks).find(|&block| !self.mm.is_isolated(block)) {
                    let what = format!("somebody else has ended the isolation of {block:?}");
                    self.shadow.violate(Invariant::OneIsolatorPerPageblock, what);
                }
                self.shadow.unisolate(range);
                self.mm.undo_isolate_page_range(range, Some(MigrateType::Movable));
            }
            sync::yield_now();
        }
    }

    /// Adds a memory block that was not there.
    pub(crate) fn hot_adder(&self, block: usize) {
        self.mm.add_section(block, ZoneId(0));
        self.shadow.forget(self.mm.geometry().section_range(block));
        if let Err(error) = self.mm.online_block(block) {
            self.shadow
                .violate(Invariant::OffliningEnds, format!("block {block} is new and {error}"));
        }
    }
}

/// What a CPU does.
#[derive(Clone, Copy, Debug)]
pub struct CpuPlan {
    /// How often it allocates or frees.
    pub steps: usize,
    /// The orders that it allocates.
    pub orders: &'static [u8],
    /// The most blocks that it has at once.
    pub most: usize,
    /// Half of them are unmovable.
    pub unmovable: bool,
}

impl MovePages for World {
    fn move_pages(&self, mm: &Mm, from: Pfn, order: u8, owner: Option<u32>) -> bool {
        let Some(cpu) = owner.map(|owner| owner as usize).filter(|&cpu| cpu < self.tables.len())
        else {
            return false;
        };
        // Held all the while, as the lock of a page is in migration.
        let mut table = self.tables[cpu].lock();
        let Some(page) = table.iter_mut().find(|page| page.head == from && page.order == order)
        else {
            return false;
        };
        let Ok(head) = mm.alloc(self.other_cpu(), AllocRequest::movable(order)) else {
            return false;
        };
        let old = *page;
        page.head = head;
        self.shadow.verify(old.range(), old.content);
        self.shadow.allocated(page.range(), u32::try_from(cpu).unwrap_or(u32::MAX), old.content);
        mm.set_owner(head, u32::try_from(cpu).unwrap_or(u32::MAX));
        self.shadow.freed(old.range(), old.content);
        mm.free(self.other_cpu(), from);
        true
    }
}
