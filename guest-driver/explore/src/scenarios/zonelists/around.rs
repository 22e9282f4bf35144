// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What meets with an update: interrupts on its CPU, the console, and who waits for whom.

use std::sync::{Arc, OnceLock, Weak};

use super::setting::Scenario;
use guest_driver::page_alloc::{AllocRequest, MigrateType, Mm, Surroundings};
use guest_driver::sync::{self, AtomicUsize, Ordering};
use guest_driver::waits::{Party, Thing, Waits, WatchedMutex};

/// An allocation that may not sleep.
const ATOMIC: AllocRequest =
    AllocRequest { order: 0, migratetype: MigrateType::Unmovable, node: 0, atomic: true };

/// The CPUs by number: readers, the one that prints, and the one that updates.
pub(super) struct Around {
    mm: OnceLock<Weak<Mm>>,
    waits: Arc<Waits>,
    readers: Vec<Party>,
    printer: Party,
    writer: Party,
    handler: Party,
    count: Thing,
    cpu: Thing,
    console: WatchedMutex,
    /// Interrupts that are raised and not handled.
    pending: AtomicUsize,
}

impl Around {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let waits = Arc::new(Waits::new());
        Self {
            mm: OnceLock::new(),
            readers: (0..scenario.count).map(|n| waits.party(format!("reader {n}"))).collect(),
            printer: waits.party("the CPU that prints"),
            writer: waits.party("the writer"),
            handler: waits.party("the interrupt handler"),
            count: waits.thing("the sequence count"),
            cpu: waits.thing("its CPU"),
            console: WatchedMutex::watched(&waits, "the console"),
            waits,
            pending: AtomicUsize::new(0),
        }
    }

    pub(super) fn set_mm(&self, mm: &Arc<Mm>) {
        let _ = self.mm.set(Arc::downgrade(mm));
    }

    fn printing_cpu(&self) -> usize {
        self.readers.len()
    }

    /// The CPU that updates.
    pub(super) fn writing_cpu(&self) -> usize {
        self.readers.len() + 1
    }

    /// Allocates and frees as one that may not sleep.
    fn allocate(&self, cpu: usize) {
        let Some(mm) = self.mm.get().and_then(Weak::upgrade) else { return };
        if let Ok(page) = mm.alloc(cpu, ATOMIC) {
            mm.free(cpu, page);
        }
    }

    /// A device raises interrupts.
    pub(super) fn interrupt(&self, times: usize) {
        for _ in 0..times {
            self.pending.fetch_add(1, Ordering::Relaxed);
            sync::yield_now();
        }
    }

    /// A CPU prints: the driver of the console allocates with its lock held.
    pub(super) fn print(&self, lines: usize) {
        for _ in 0..lines {
            let console = self.console.lock(self.printer);
            self.allocate(self.printing_cpu());
            drop(console);
            sync::yield_now();
        }
    }

    fn party(&self, cpu: usize, atomic: bool) -> Party {
        let other = if atomic && cpu == self.writing_cpu() { self.handler } else { self.printer };
        self.readers.get(cpu).copied().unwrap_or(other)
    }
}

impl Surroundings for Around {
    fn updates(&self, odd: bool) {
        if odd {
            self.waits.hold(self.writer, self.count);
        } else {
            self.waits.release(self.writer, self.count);
        }
    }

    fn interruptible(&self) {
        while self.pending.load(Ordering::Relaxed) > 0 {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            // The writer goes on when the handler has returned.
            self.waits.hold(self.handler, self.cpu);
            self.waits.wait(self.writer, self.cpu);
            self.allocate(self.writing_cpu());
            self.waits.waited(self.writer);
            self.waits.release(self.handler, self.cpu);
        }
    }

    fn prints(&self) {
        drop(self.console.lock(self.writer));
    }

    fn waits(&self, cpu: usize, atomic: bool) {
        self.waits.wait(self.party(cpu, atomic), self.count);
    }

    fn waited(&self, cpu: usize, atomic: bool) {
        self.waits.waited(self.party(cpu, atomic));
    }
}
