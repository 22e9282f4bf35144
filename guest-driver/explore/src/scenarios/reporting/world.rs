// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the actors of a run share: the model's memory, and each CPU's blocks.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::invariant::Holds;
use super::pages::Pages;
use crate::Run;
use guest_driver::page_alloc::{AllocRequest, Mm, MovePages, Pfn, PfnRange};
use guest_driver::placement::{CpusetId, Placement, TaskId};
use guest_driver::reporting::Memory;
use guest_driver::sync::Lock;

/// What the actors of a run share.
pub(super) struct World {
    pub(super) mm: Arc<Mm>,
    /// What the reporter remembers.
    pub(super) memory: Memory,
    pub(super) run: Arc<Run<Holds>>,
    /// What is known of each page beside the model.
    pub(super) pages: Pages,
    /// What each CPU has allocated.
    tables: Vec<Lock<Vec<Owned>>>,
    /// The next content to write.
    contents: AtomicU64,
    /// The tasks that the CPUs run.
    tasks: Option<Placement>,
    out_of_memory: Option<Holds>,
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

impl World {
    /// A world around `mm`, in which `cpus` CPUs allocate, those of actors that keep pages included.
    pub(super) fn new(
        mm: Arc<Mm>,
        memory: Memory,
        run: Arc<Run<Holds>>,
        cpus: usize,
        (tasks, out_of_memory): (Option<Placement>, Option<Holds>),
    ) -> Self {
        let geometry = mm.geometry();
        let pages = geometry.section_range(mm.section_count()).start.0;
        Self {
            mm,
            memory,
            pages: Pages::new(pages, Arc::clone(&run)),
            run,
            tables: (0..cpus).map(|_| Lock::new(Vec::new())).collect(),
            contents: AtomicU64::new(1),
            tasks,
            out_of_memory,
        }
    }

    /// The CPU of actors that have none of their own.
    pub(super) fn other_cpu(&self) -> usize {
        self.tables.len()
    }

    /// A content that was not written before.
    pub(super) fn content(&self) -> u64 {
        self.contents.fetch_add(1, Ordering::Relaxed)
    }

    /// Allocates a block for `cpu`; false if there is none.
    pub(super) fn allocate(&self, cpu: usize, request: AllocRequest) -> bool {
        self.allocate_as(cpu, request, false)
    }

    /// The same, of pages that are zero if `zeroed`.
    pub(super) fn allocate_as(&self, cpu: usize, request: AllocRequest, zeroed: bool) -> bool {
        let order = request.order;
        let task = TaskId(cpu);
        let allocated = match &self.tasks {
            Some(tasks) => tasks.alloc(task, None, cpu, request),
            None if zeroed => self.mm.alloc_zeroed(cpu, request, |range| self.pages.clear(range)),
            None => self.mm.alloc(cpu, request),
        };
        let Ok(head) = allocated else {
            if let Some(broken) = self.out_of_memory.filter(|_| order == 0) {
                let what = format!("CPU {cpu} gets no page, of many that are free or withheld");
                self.run.violate(broken, what);
            }
            return false;
        };
        let user = u32::try_from(cpu).unwrap_or(u32::MAX);
        let page = Owned { head, order, content: self.content() };
        if zeroed {
            self.pages.expect_zero(page.range());
        }
        self.pages.allocated(page.range(), user, page.content);
        // Pages are moved by their owner, and by then they are in the table.
        self.tables[cpu].lock().push(page);
        self.mm.set_owner(head, user);
        true
    }

    /// Gives the cpuset of all tasks other nodes.
    pub(super) fn update_cpuset(&self, mems: &[u8]) {
        let mems = mems.iter().copied().collect();
        let Some(Err(error)) = self.tasks.as_ref().map(|tasks| tasks.set_mems(CpusetId(0), mems))
        else {
            return;
        };
        self.run.violate(Holds::ModelAssertionsHold, format!("a cpuset is not updated: {error}"));
    }

    /// Frees one of the blocks of `cpu`; the block.
    pub(super) fn free(&self, cpu: usize, index: usize) -> Pfn {
        let page = self.tables[cpu].lock().remove(index);
        self.pages.freed(page.range(), page.content);
        self.mm.free(cpu, page.head);
        page.head
    }

    /// Frees the block that `cpu` has allocated last; the block.
    pub(super) fn free_last(&self, cpu: usize) -> Pfn {
        let count = self.tables[cpu].lock().len();
        self.free(cpu, count - 1)
    }

    /// Frees what `cpu` has, but for one block a pageblock: no free block becomes as large as one.
    pub(super) fn thin_out(&self, cpu: usize) {
        let order = self.mm.geometry().pageblock_order;
        let (mut kept, mut index) = (Vec::new(), 0);
        loop {
            let page = self.tables[cpu].lock().get(index).copied();
            match page.map(|page| page.head.align_down(order)) {
                None => break,
                Some(block) if kept.contains(&block) => {
                    self.free(cpu, index);
                }
                Some(block) => {
                    kept.push(block);
                    index += 1;
                }
            }
        }
    }
}

impl MovePages for World {
    fn move_pages(&self, mm: &Mm, from: Pfn, order: u8, owner: Option<u32>) -> bool {
        let Some(cpu) = owner.map(|owner| owner as usize).filter(|&cpu| cpu < self.tables.len())
        else {
            return false;
        };
        // Held until the end, as the lock of a page is in migration.
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
        self.pages.verify(old.range(), old.content);
        self.pages.allocated(page.range(), u32::try_from(cpu).unwrap_or(u32::MAX), old.content);
        mm.set_owner(head, u32::try_from(cpu).unwrap_or(u32::MAX));
        self.pages.freed(old.range(), old.content);
        mm.free(self.other_cpu(), from);
        true
    }
}
