// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults and forks a second, with real threads.
//!
//! Each thread is a process that maps the same file. One that faults touches page after page, and maps
//! the file again when it has touched all of them. One that forks has a child that exits at once. The
//! figures compare schemes: besides its locks a fault of the model does next to nothing.
//!
//! ```
//! use guest_driver::hugetlb::Scheme;
//! use guest_driver::hugetlb::measure::{Load, run};
//! use std::time::Duration;
//!
//! let load = Load { faulters: 2, forkers: 1, ..Load::of(Scheme::VmaLock) };
//! let rates = run(load, Duration::from_millis(10)).expect("no rule is broken");
//! assert!(rates.faults > 0 && rates.forks > 0);
//! ```

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Broken, Config, Hugetlb, Locks, Scheme, Task};

/// Threads, and the file that they map.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What keeps a page table in place under a fault.
    pub scheme: Scheme,
    /// Threads that fault.
    pub faulters: usize,
    /// Threads that fork.
    pub forkers: usize,
    /// Page tables that map the whole file.
    pub pieces: usize,
    /// Entries of a page table.
    pub entries: usize,
    /// What the locks are.
    pub locks: Locks,
}

impl Load {
    /// One thread that faults in a file of four page tables of x86-64 (4 GiB), with this scheme.
    pub fn of(scheme: Scheme) -> Self {
        Self { scheme, faulters: 1, forkers: 0, pieces: 4, entries: 512, locks: Locks::InOrder }
    }
}

/// What was done in how long.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Faults of all threads.
    pub faults: u64,
    /// Forks of all threads, each with the exit of the child.
    pub forks: u64,
    /// Waits in the queue of the two locks of the file: `i_mmap_rwsem` and the inode's rwsem.
    pub waits: u64,
    /// From the start of all threads to the end of the last.
    pub elapsed: Duration,
}

impl Rates {
    /// Faults a second.
    pub fn faults_per_second(&self) -> f64 {
        rate(self.faults, self.elapsed)
    }

    /// Forks a second.
    pub fn forks_per_second(&self) -> f64 {
        rate(self.forks, self.elapsed)
    }
}

fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// Runs `load` for `duration`.
///
/// # Errors
/// The first rule that an operation saw broken.
pub fn run(load: Load, duration: Duration) -> Result<Rates, Broken> {
    let Load { scheme, faulters, forkers, pieces, entries, locks } = load;
    let spaces = faulters + 2 * forkers;
    let hugetlb = Hugetlb::new(Config { scheme, flaw: None, pieces, entries, spaces, locks });
    let task = hugetlb.task("setup");
    for space in (0..faulters).chain((0..forkers).map(|at| faulters + 2 * at)) {
        hugetlb.mmap(&task, space);
        // A page of each page table, so that a fork has all of them to share.
        for piece in 0..pieces {
            hugetlb.fault(&task, space, piece * entries)?;
        }
    }
    let (stop, start) = (AtomicBool::new(false), Barrier::new(faulters + forkers + 1));
    let (hugetlb, stop, start) = (&hugetlb, &stop, &start);
    thread::scope(|scope| {
        let faulters: Vec<_> = (0..faulters)
            .map(|space| scope.spawn(move || faulter(hugetlb, space, stop, start)))
            .collect();
        let forkers: Vec<_> = (0..forkers)
            .map(|at| load.faulters + 2 * at)
            .map(|parent| scope.spawn(move || forker(hugetlb, parent, stop, start)))
            .collect();
        start.wait();
        let begun = Instant::now();
        thread::sleep(duration);
        stop.store(true, Ordering::Relaxed);
        let sum = |handles: Vec<thread::ScopedJoinHandle<'_, Result<u64, Broken>>>| {
            let join = |handle: thread::ScopedJoinHandle<'_, Result<u64, Broken>>| {
                handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            handles.into_iter().map(join).sum::<Result<u64, Broken>>()
        };
        let (faults, forks) = (sum(faulters)?, sum(forkers)?);
        let waits = hugetlb.inode.i_mmap.slept() + hugetlb.inode.sharing.slept();
        Ok(Rates { faults, forks, waits, elapsed: begun.elapsed() })
    })
}

fn faulter(
    hugetlb: &Hugetlb,
    space: usize,
    stop: &AtomicBool,
    start: &Barrier,
) -> Result<u64, Broken> {
    let task = hugetlb.task("a faulter");
    start.wait();
    let mut faults = 0;
    loop {
        for index in 0..hugetlb.pages() {
            if stop.load(Ordering::Relaxed) {
                return Ok(faults);
            }
            hugetlb.fault(&task, space, index)?;
            faults += 1;
        }
        remap(hugetlb, &task, space)?;
    }
}

fn remap(hugetlb: &Hugetlb, task: &Task, space: usize) -> Result<(), Broken> {
    hugetlb.munmap(task, space)?;
    hugetlb.mmap(task, space);
    Ok(())
}

fn forker(
    hugetlb: &Hugetlb,
    parent: usize,
    stop: &AtomicBool,
    start: &Barrier,
) -> Result<u64, Broken> {
    let task = hugetlb.task("a forker");
    start.wait();
    let mut forks = 0;
    while !stop.load(Ordering::Relaxed) {
        hugetlb.fork(&task, parent, parent + 1)?;
        hugetlb.munmap(&task, parent + 1)?;
        forks += 1;
    }
    Ok(forks)
}
