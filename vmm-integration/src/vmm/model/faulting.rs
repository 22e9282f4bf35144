// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs of the model that fault memory in: threads that stay on their CPU.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_agent::faulting::{FaultingPlan, Work};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{AllocRequest, Mm, Pfn};
use guest_driver::ram::{Gpa, GuestRam};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::ModelVm;
use crate::guest::Faulted;
use crate::measure::host;

/// Order of a huge page.
const HUGE: u8 = 9;
/// Pages between two looks at the clock: one huge page.
const PAGES_A_LOOK: u64 = 512;

/// The programs' files: the pages of each task's file, all in the page cache.
#[derive(Default)]
pub(super) struct Files(Vec<Vec<Pfn>>);

impl Files {
    /// Allocates what `plan` needs and is not there yet.
    pub(super) fn ensure(&mut self, vm: &ModelVm, plan: FaultingPlan) -> Result<()> {
        let tasks = usize::try_from(plan.tasks)?;
        if plan.work != Work::File {
            return Ok(());
        }
        for cpu in 0..tasks {
            if self.0.len() <= cpu {
                self.0.push(Vec::new());
            }
            while self.0[cpu].len() < blocks(plan.bytes, 0)? {
                let pfn = allocate(vm.mm(), cpu, 0)?;
                vm.ram().write(Gpa(pfn.address()), &[1; 4096])?;
                self.0[cpu].push(pfn);
            }
        }
        Ok(())
    }
}

/// Runs one program a CPU until their time is over.
pub(super) fn run(vm: &ModelVm, files: &Files, plan: FaultingPlan) -> Result<Faulted> {
    let tasks = usize::try_from(plan.tasks)?;
    let cpus = vm.config.memory.layout.cpus;
    ensure!((1..=cpus).contains(&tasks), "tasks is {tasks}: expected 1 to {cpus}, one a CPU");
    let start = Instant::now();
    let (pages, cpu) = thread::scope(|scope| {
        let programs: Vec<_> =
            (0..tasks).map(|cpu| scope.spawn(move || program(vm, files, plan, cpu))).collect();
        programs.into_iter().try_fold((0, Duration::ZERO), |sum, program| match program.join() {
            Ok(done) => done.map(|(pages, cpu)| (sum.0 + pages, sum.1 + cpu)),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(Faulted { pages, time: start.elapsed(), cpu })
}

/// One program: maps, writes to every page, unmaps, until its time is over. Returns its pages and
/// CPU time.
fn program(vm: &ModelVm, files: &Files, plan: FaultingPlan, cpu: usize) -> Result<(u64, Duration)> {
    stay_on(cpu)?;
    let time = Duration::from_millis(plan.milliseconds);
    let (start, cpu_start) = (Instant::now(), host::thread_cpu_time()?);
    // No part of the model is a kernel: what Linux does for the program, the program does.
    let (order, file) = match plan.work {
        Work::Anonymous | Work::Populate => (HUGE, None),
        Work::File => (0, files.0.get(cpu)),
        Work::Write => (0, None),
    };
    let (mm, ram) = (vm.mm(), vm.ram());
    let mut taken = Vec::new();
    let mut pages = 0_u64;
    let mut page = [0; 4096];
    let mut done = false;
    while !done {
        for block in 0..blocks(plan.bytes, order)? {
            let pfn = allocate(mm, cpu, order)?;
            taken.push(pfn);
            if let Some(source) = file.and_then(|file| file.get(block)) {
                ram.read(Gpa(source.address()), &mut page)?;
            }
            for nr in 0..1_u64 << order {
                // What the kernel does: zeros, or a copy of the file's page.
                ram.write(Gpa(pfn.address() + nr * PAGE_BYTES), &page)?;
            }
            pages += 1 << order;
            // Looking at the clock takes time as well.
            done = pages.is_multiple_of(PAGES_A_LOOK) && start.elapsed() >= time;
            if done {
                break;
            }
        }
        taken.drain(..).for_each(|pfn| mm.free(cpu, pfn));
    }
    Ok((pages, host::thread_cpu_time()?.saturating_sub(cpu_start)))
}

/// Blocks of a mapping.
fn blocks(bytes: u64, order: u8) -> Result<usize> {
    let block = PAGE_BYTES << order;
    ensure!(bytes >= block, "bytes is {bytes}: expected a block of {block} or more");
    Ok(usize::try_from(bytes / block)?)
}

/// Waits for pages that are held for a report.
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

/// Keeps this thread on one of the CPUs that it may use.
fn stay_on(nr: usize) -> Result<()> {
    let allowed = sched_getaffinity(None).context("asking for this thread's CPUs")?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let mut one = CpuSet::new();
    one.set(*cpus.get(nr % cpus.len().max(1)).context("this thread may use no CPU")?);
    sched_setaffinity(None, &one).context("pinning a thread")
}
