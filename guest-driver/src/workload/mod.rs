//! Threads that act as a guest's CPUs: they allocate pages, write what names page and generation,
//! check it, and free them.
//!
//! Contents are the proof. Whatever else goes on in the guest, reporting, offlining, contiguous
//! allocation, a page in use holds what was written into it; one word that differs fails the run,
//! with what became of the page of late.

mod history;
mod slots;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::mm::{AllocRequest, Mm, Pfn, PfnRange};
use crate::ram::GuestRam;
pub use history::Event;
use history::History;
pub use slots::Slots;

/// What the CPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Each holds about as much as it may, and replaces single blocks: frees one, allocates one.
    Churn,
    /// Each fills all it may, checks it, and frees all of it, over and over (memhog).
    Memhog,
    /// Single pages, allocated one after the other and freed together (page_fault1).
    PageFault,
    /// As churn, with every order, so that free memory falls apart.
    Fragment,
}

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many threads, each a CPU of its own.
    pub cpus: usize,
    /// What they do.
    pub behaviour: Behaviour,
    /// The order of the blocks, and for [`Behaviour::Fragment`] the largest.
    pub order: u8,
    /// Pages that each CPU holds at the most.
    pub pages_a_cpu: u64,
    /// What the random numbers begin with.
    pub seed: u64,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Blocks allocated and written.
    pub allocated: u64,
    /// Blocks checked and freed.
    pub freed: u64,
    /// Bytes that were checked.
    pub verified_bytes: u64,
    /// Allocations that found no memory.
    pub failed: u64,
}

/// Memory in use that does not hold what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pfn:?} holds {found:#x} where {expected:#x} was written; of late: {history:?}")]
pub struct LostBytes {
    /// The page.
    pub pfn: Pfn,
    /// The word that was written.
    pub expected: u64,
    /// The word that is there.
    pub found: u64,
    /// What became of the page of late, oldest first.
    pub history: Vec<Event>,
}

/// Counters that the threads share.
#[derive(Default)]
struct Counters {
    allocated: AtomicU64,
    freed: AtomicU64,
    verified_bytes: AtomicU64,
    failed: AtomicU64,
}

/// A workload on the memory of one guest. Offliners move its pages through [`Workload::slots`].
pub struct Workload<'a, R> {
    mm: &'a Mm,
    config: Config,
    slots: Slots<'a, R>,
    history: History,
    counters: Counters,
}

impl<'a, R: GuestRam + Sync> Workload<'a, R> {
    /// A workload that has not begun. `mm` has one CPU more than the workload, for whoever moves
    /// its pages.
    pub fn new(mm: &'a Mm, ram: &'a R, config: Config) -> Self {
        let blocks = config.pages_a_cpu >> config.order.min(mm.geometry().max_order);
        // With smaller blocks among them there are more.
        let spread = if config.behaviour == Behaviour::Fragment { blocks * 8 } else { blocks };
        let each = usize::try_from(spread.max(1)).unwrap_or(usize::MAX);
        Self {
            mm,
            config,
            slots: Slots::new(ram, config.cpus, each, config.cpus),
            history: History::default(),
            counters: Counters::default(),
        }
    }

    /// Moves the workload's pages, for offlining and contiguous allocation.
    pub fn slots(&self) -> &Slots<'a, R> {
        &self.slots
    }

    /// Runs until `stop`, then checks and frees everything.
    ///
    /// # Errors
    /// [`LostBytes`], the first that was found.
    pub fn run(&self, stop: &AtomicBool) -> Result<Done, LostBytes> {
        let lost = std::thread::scope(|scope| {
            let cpus: Vec<_> = (0..self.config.cpus)
                .map(|cpu| scope.spawn(move || self.run_cpu(cpu, stop)))
                .collect();
            cpus.into_iter()
                .filter_map(|cpu| match cpu.join() {
                    Ok(result) => result.err(),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .next()
        });
        match lost {
            Some(lost) => Err(lost),
            None => Ok(self.done()),
        }
    }

    /// What was done so far.
    pub fn done(&self) -> Done {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Done {
            allocated: read(&self.counters.allocated),
            freed: read(&self.counters.freed),
            verified_bytes: read(&self.counters.verified_bytes),
            failed: read(&self.counters.failed),
        }
    }

    fn run_cpu(&self, cpu: usize, stop: &AtomicBool) -> Result<(), LostBytes> {
        let mut random = Random(self.config.seed ^ (cpu as u64) << 32);
        let mine = self.slots.of_cpu(cpu);
        while !stop.load(Ordering::Relaxed) {
            let result = match self.config.behaviour {
                Behaviour::Churn => self.replace_one(cpu, &mut random, self.config.order),
                Behaviour::Fragment => {
                    let order = random.below(u64::from(self.config.order) + 1);
                    self.replace_one(cpu, &mut random, u8::try_from(order).unwrap_or(0))
                }
                Behaviour::Memhog | Behaviour::PageFault => {
                    for slot in mine.clone() {
                        if !self.fill(cpu, slot, self.config.order) {
                            break;
                        }
                    }
                    mine.clone().try_for_each(|slot| self.check_and_free(cpu, slot))
                }
            };
            // The others stop, too.
            result.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        mine.clone().try_for_each(|slot| self.check_and_free(cpu, slot))
    }

    fn replace_one(&self, cpu: usize, random: &mut Random, order: u8) -> Result<(), LostBytes> {
        let mine = self.slots.of_cpu(cpu);
        let slot = mine.start + random.index(mine.len());
        self.check_and_free(cpu, slot)?;
        self.fill(cpu, slot, order);
        Ok(())
    }

    /// Allocates into a slot and writes; false if there is no memory.
    fn fill(&self, cpu: usize, slot: usize, order: u8) -> bool {
        let Some(filled) = self.slots.fill(self.mm, cpu, slot, AllocRequest::movable(order)) else {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        self.history.add(Event::Allocated {
            cpu,
            pfn: filled.pfn,
            order,
            generation: filled.generation,
        });
        self.counters.allocated.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Checks what is in a slot, if anything is, and frees it.
    fn check_and_free(&self, cpu: usize, slot: usize) -> Result<(), LostBytes> {
        let Some((pfn, order)) = self.slots.check_and_free(self.mm, cpu, slot).map_err(|bad| {
            let history = self.history.of(PfnRange::block(bad.pfn, 0));
            LostBytes { pfn: bad.pfn, expected: bad.expected, found: bad.found, history }
        })?
        else {
            return Ok(());
        };
        self.history.add(Event::Freed { cpu, pfn, order });
        self.counters.freed.fetch_add(1, Ordering::Relaxed);
        let bytes = crate::mm::geometry::PAGE_BYTES << order;
        self.counters.verified_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// A small generator, so that a run repeats (Steele's splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// An index below `len`, which is not zero.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::{Geometry, Layout, ZoneId};
    use crate::ram::{Gpa, RamError};
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    /// Memory of which every 4 KiB page has a lock of its own.
    struct Pages(Vec<Mutex<Vec<u8>>>);

    impl GuestRam for Pages {
        fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), RamError> {
            for (i, part) in into.chunks_mut(4096).enumerate() {
                let page = self.0[usize::try_from(at.0 >> 12).unwrap() + i].lock().unwrap();
                part.copy_from_slice(&page[..part.len()]);
            }
            Ok(())
        }

        fn write(&self, at: Gpa, from: &[u8]) -> Result<(), RamError> {
            for (i, part) in from.chunks(4096).enumerate() {
                let mut page = self.0[usize::try_from(at.0 >> 12).unwrap() + i].lock().unwrap();
                page[..part.len()].copy_from_slice(part);
            }
            Ok(())
        }

        // No ring is in this memory.
        fn load_u16(&self, at: Gpa, _: Ordering) -> Result<u16, RamError> {
            Err(RamError::OutOfRange { at, len: 2 })
        }

        fn store_u16(&self, at: Gpa, _: u16, _: Ordering) -> Result<(), RamError> {
            Err(RamError::OutOfRange { at, len: 2 })
        }
    }

    const SMALL: Geometry = Geometry { section_order: 10, ..Geometry::LINUX };

    fn small() -> (Mm, Pages) {
        let mm = Mm::new(&Layout::flat(SMALL, 3, 4));
        let pages = (0..4096).map(|_| Mutex::new(vec![0; 4096])).collect();
        (mm, Pages(pages))
    }

    fn config(behaviour: Behaviour) -> Config {
        Config { cpus: 2, behaviour, order: 2, pages_a_cpu: 600, seed: 1 }
    }

    #[test]
    fn every_behaviour_runs_beside_an_offliner_and_loses_nothing() {
        use Behaviour::*;
        for behaviour in [Churn, Memhog, PageFault, Fragment] {
            let (mm, ram) = small();
            let workload = Workload::new(&mm, &ram, config(behaviour));
            let stop = AtomicBool::new(false);
            let offlined = std::thread::scope(|scope| {
                let run = scope.spawn(|| workload.run(&stop));
                let end = Instant::now() + Duration::from_millis(300);
                let mut offlined = 0;
                while Instant::now() < end && !run.is_finished() {
                    let late = Instant::now() + Duration::from_millis(50);
                    let give_up = || Instant::now() > late;
                    if mm.offline_block(3, workload.slots(), &give_up).is_ok() {
                        offlined += 1;
                        mm.online_block(3).unwrap();
                    }
                }
                stop.store(true, Ordering::Relaxed);
                let done = run.join().unwrap().unwrap();
                assert!(done.freed > 0 && done.freed == done.allocated, "{done:?}");
                offlined
            });
            assert!(offlined > 0, "{behaviour:?}: the block never went offline");
            mm.drain_all(ZoneId(0));
            mm.validate().unwrap();
            assert_eq!(mm.zone(ZoneId(0)).free_pages(), 4096);
        }
    }

    #[test]
    fn a_lost_word_is_found_with_the_history_of_its_page() {
        let (mm, ram) = small();
        let workload = Workload::new(&mm, &ram, config(Behaviour::Churn));
        assert!(workload.fill(0, 0, 0));
        let pfn = workload.slots.pfn(0).unwrap();
        ram.write(Gpa(pfn.address() + 4088), &[0; 8]).unwrap();
        let lost = workload.check_and_free(0, 0).unwrap_err();
        assert_eq!((lost.pfn, lost.found), (pfn, 0));
        assert_eq!(lost.history, [Event::Allocated { cpu: 0, pfn, order: 0, generation: 1 }]);
    }
}
