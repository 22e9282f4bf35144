// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model's part: programs on threads that stay on their CPU, and a reporter that is suspended
//! and resumed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_agent::faulting::Mapped;
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{AllocRequest, Mm, Pfn};
use guest_driver::ram::{Gpa, GuestRam};
use guest_driver::reporting::{Config, Reporter, Schedule};
use guest_driver::virtio::balloon_driver::ReportingQueue;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::super::daemon::CountedDaemon;
use super::{Guest, MAPPING_BYTES, Work};
use crate::progress;
use vmm_integration::frontend::Line;
use vmm_integration::guest_memory::Ram;
use vmm_integration::measure::host;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelVm};

/// Of a huge page.
const HUGE: u8 = 9;
/// Passes that a reporter has to give everything back before it is suspended.
const LAST_PASSES: usize = 64;
/// Between two looks at the clock: what a huge page has.
const PAGES_A_LOOK: u64 = 512;

/// A model with its reporter.
pub(super) struct Model {
    mapped: Mapped,
    tasks: usize,
    /// Of each task, the pages of its file.
    files: Vec<Vec<Pfn>>,
    reporting: Arc<Mutex<Reporting>>,
    thread: ReporterThread,
    vm: ModelVm,
    device: CountedDaemon,
}

/// Makes passes; ends when this is dropped.
struct ReporterThread {
    schedule: Arc<Schedule>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for ReporterThread {
    fn drop(&mut self) {
        self.schedule.close();
    }
}

struct Reporting {
    reporter: Reporter,
    queue: ReportingQueue<Ram, Line>,
}

fn lock(reporting: &Mutex<Reporting>) -> MutexGuard<'_, Reporting> {
    reporting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Model {
    pub(super) fn start(
        mapped: Mapped,
        tasks: usize,
        memory: u64,
        device: CountedDaemon,
    ) -> Result<Self> {
        let mut vm =
            ModelVm::start(&device.socket(), ModelConfig::new(GuestMemory::flat(memory, tasks)))?;
        let files = (0..tasks)
            .map(|cpu| match mapped {
                Mapped::Anonymous => Ok(Vec::new()),
                Mapped::File => file(&vm, cpu),
            })
            .collect::<Result<_>>()?;
        let queue = vm.take_reporting()?;
        let reporter = Reporter::new(Arc::clone(vm.mm()), Config::default())?;
        let schedule = Arc::clone(reporter.schedule());
        let reporting = Arc::new(Mutex::new(Reporting { reporter, queue }));
        let thread = {
            let (schedule, reporting) = (Arc::clone(&schedule), Arc::clone(&reporting));
            thread::Builder::new().name("reporter".into()).spawn(move || {
                while schedule.wait() {
                    let mut reporting = lock(&reporting);
                    let Reporting { reporter, queue } = &mut *reporting;
                    reporter.pass(queue);
                }
            })
        };
        let handle = Some(thread.context("cannot start the reporter's thread")?);
        let thread = ReporterThread { schedule, handle };
        Ok(Self { mapped, tasks, files, reporting, thread, vm, device })
    }

    /// One program: maps, writes to every page, unmaps, until its time is over. Pages, and CPU time.
    fn program(&self, cpu: usize, time: Duration) -> Result<(u64, Duration)> {
        stay_on(cpu)?;
        let (start, cpu_start) = (Instant::now(), host::thread_cpu_time()?);
        let order = if self.mapped == Mapped::Anonymous { HUGE } else { 0 };
        let (mm, ram) = (self.vm.mm(), self.vm.ram());
        let mut taken = Vec::new();
        let mut pages = 0_u64;
        let mut page = [0; 4096];
        let mut done = false;
        while !done {
            for block in 0..blocks(order) {
                // What is held for a report cannot be had for a moment.
                let pfn = allocate(mm, cpu, order)?;
                taken.push(pfn);
                if let Some(source) = self.files.get(cpu).and_then(|file| file.get(block)) {
                    ram.read(Gpa(source.address()), &mut page)?;
                }
                for nr in 0..1_u64 << order {
                    // What the kernel does: zeros, or a copy of the file's page.
                    ram.write(Gpa(pfn.address() + nr * PAGE_BYTES), &page)?;
                }
                pages += 1 << order;
                // Looking at the clock takes time as well.
                let look = pages.is_multiple_of(PAGES_A_LOOK);
                done = look && (start.elapsed() >= time || progress::interrupted());
                if done {
                    break;
                }
            }
            taken.drain(..).for_each(|pfn| mm.free(cpu, pfn));
        }
        Ok((pages, host::thread_cpu_time()?.saturating_sub(cpu_start)))
    }
}

/// Blocks of a mapping.
fn blocks(order: u8) -> usize {
    usize::try_from(MAPPING_BYTES / (PAGE_BYTES << order)).unwrap_or(usize::MAX)
}

fn allocate(mm: &Mm, cpu: usize, order: u8) -> Result<Pfn> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let start = Instant::now();
    loop {
        match mm.alloc(cpu, AllocRequest::movable(order)) {
            Ok(pfn) => return Ok(pfn),
            Err(error) if start.elapsed() >= PATIENCE => return Err(error.into()),
            Err(_) => thread::yield_now(),
        }
    }
}

/// The pages of a file, all in the page cache.
fn file(vm: &ModelVm, cpu: usize) -> Result<Vec<Pfn>> {
    let page = |_| -> Result<Pfn> {
        let pfn = vm.mm().alloc(cpu, AllocRequest::movable(0))?;
        vm.ram().write(Gpa(pfn.address()), &[1; 4096])?;
        Ok(pfn)
    };
    (0..blocks(0)).map(page).collect()
}

/// Keeps this thread on one of the CPUs that it may use.
fn stay_on(nr: usize) -> Result<()> {
    let allowed = sched_getaffinity(None).context("asking for this thread's CPUs")?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let mut one = CpuSet::new();
    one.set(*cpus.get(nr % cpus.len().max(1)).context("this thread may use no CPU")?);
    sched_setaffinity(None, &one).context("pinning a thread")
}

impl Guest for Model {
    fn set_reporting(&mut self, on: bool) -> Result<()> {
        let mut reporting = lock(&self.reporting);
        let Reporting { reporter, queue } = &mut *reporting;
        reporter.suspend();
        // What was freed before would be reported in the turn without.
        for _ in 0..LAST_PASSES {
            if !reporter.has_work() {
                break;
            }
            reporter.pass(queue);
        }
        ensure!(!reporter.has_work(), "the reporter still has work after {LAST_PASSES} passes");
        if on {
            reporter.resume();
        }
        Ok(())
    }

    fn work(&self, time: Duration) -> Result<Work> {
        let start = Instant::now();
        let (pages, cpu) = thread::scope(|scope| {
            let programs: Vec<_> =
                (0..self.tasks).map(|cpu| scope.spawn(move || self.program(cpu, time))).collect();
            programs.into_iter().try_fold((0, Duration::ZERO), |sum, program| {
                match program.join() {
                    Ok(done) => done.map(|(pages, cpu)| (sum.0 + pages, sum.1 + cpu)),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            })
        })?;
        Ok(Work { pages, time: start.elapsed(), cpu })
    }

    fn reported_bytes(&self) -> Result<u64> {
        Ok(self.device.discards()?.bytes)
    }

    fn describe(&self) -> String {
        let what = match self.mapped {
            Mapped::Anonymous => "zeroes huge pages",
            Mapped::File => "copies the pages of a file, each to one of its own,",
        };
        format!(
            "The model, tracker D with isolation, in memory of the host's 4 KiB pages. Each task \
             {what} up to {} MiB and frees them, on a thread that stays on its CPU; reporter and \
             daemon are where the host puts them.",
            MAPPING_BYTES >> 20
        )
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.thread.schedule.close();
        if let Some(handle) = self.thread.handle.take() {
            ensure!(handle.join().is_ok(), "the reporter's thread panicked");
        }
        let Self { vm, device, reporting, .. } = *self;
        drop((vm, reporting));
        device.finish()
    }
}
