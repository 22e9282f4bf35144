// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One discard of the daemon, with processes that have mapped the file and one that touches it.

use std::ffi::OsString;
use std::fs;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_driver::ram::Gpa;
use guest_driver::virtio::ring::Buffer;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing as File, Ram, RamLayout};
use vmm_integration::measure::hugetlb::Pool;

use super::process::{Place, Process, Way};
use super::samples::Sample;
use super::settings::{Backing, GIB, MIB, Processes, Tables, Touch};
use crate::experiment::Context;

const PATIENCE: Duration = Duration::from_secs(60);
/// Rings and the like come first.
const RINGS: u64 = 64 * MIB;
/// Of the file: what is touched elsewhere lies in the first half, what is discarded in the second.
const BYTES: u64 = 2 * GIB;
const HALF: u64 = GIB;

/// Guest memory with the processes that map it.
pub(super) struct Path {
    ram: Ram,
    page: u64,
    backing: Backing,
    /// Bytes behind the rings that are touched outside the discarded range.
    elsewhere: u64,
    /// The first one touches.
    processes: Vec<Process>,
    processors: Processors,
    _pool: Option<Pool>,
}

/// What one discard took.
pub(super) struct Discard {
    /// From the kick to the notification.
    pub(super) seconds: f64,
    pub(super) calls: u64,
    /// Faults of the first process, from some time before on.
    pub(super) faults: Vec<Sample>,
    /// Minor faults of the second process, to map what is discarded.
    pub(super) to_map: Option<u64>,
}

impl Path {
    /// Prepares to discard `span` bytes at most at once.
    ///
    /// # Errors
    /// If the host lacks the pages, or a process does not start.
    pub(super) fn new(
        backing: Backing,
        tables: Tables,
        processes: Processes,
        span: u64,
    ) -> Result<Self> {
        let page = backing.page_bytes();
        // A fault takes as long as a discarded huge page, or longer: this is enough for one each.
        let elsewhere = (span + 64 * MIB).min(HALF - RINGS);
        let (file, pool) = match backing {
            Backing::Base => (File::Memfd, None),
            Backing::Hugetlb => {
                let pool = Pool::with_free(page, RINGS + elsewhere + span)?;
                (File::Hugetlb { page_bytes: page }, Some(pool))
            }
        };
        let ram = Ram::new(&RamLayout::flat(BYTES, file))?;
        let bytes = usize::try_from(BYTES)?;
        let dropped = (usize::try_from(ram.user_addr(Gpa(0))?)?, bytes);
        let fork = |index: usize| {
            let shift = match tables {
                Tables::Shared => 0,
                Tables::Private => (index + 1) * usize::try_from(2 * MIB)?,
            };
            Process::fork(ram.file(0), Place { shift, bytes, dropped })
        };
        let processes = (0..processes.count()).map(fork).collect::<Result<Vec<_>>>()?;
        let processors = Processors::kept()?;
        if processors.are_two() {
            for process in &processes {
                pin(Some(process.pid()), 0)?;
            }
        }
        let mut path = Self { ram, page, backing, elsewhere, processes, processors, _pool: pool };
        path.warm_up(span)?;
        Ok(path)
    }

    /// Discards `span` bytes in calls of `call` bytes at most.
    ///
    /// # Errors
    /// If the daemon or a process fails, or not all is discarded.
    pub(super) fn discard(
        &mut self,
        call: u64,
        span: u64,
        touch: Touch,
        context: &Context<'_>,
    ) -> Result<Discard> {
        self.empty()?;
        let mut to_map = None;
        for (index, process) in self.processes.iter_mut().enumerate() {
            let faults = process.populate(HALF, span, self.page)?;
            to_map = to_map.or((index == 1).then_some(faults));
        }
        if touch == Touch::Mapped {
            // In the file, and in no page table.
            fallocate(self.ram.file(0), FallocateFlags::KEEP_SIZE, RINGS, self.elsewhere)?;
        }
        let mut args: Vec<OsString> = vec![format!("--max-discard-call={call}").into()];
        args.extend((self.backing == Backing::Hugetlb).then(|| "--hugetlb".into()));
        let options = DaemonOptions { args, ..DaemonOptions::default() };
        let mut daemon = DaemonProcess::spawn(&context.daemon()?, &options)?;
        let mut guest = Attachment::connect(&daemon.socket(), &self.ram, AttachOptions::default())?;
        if self.processors.are_two() {
            // This thread sleeps while the daemon works.
            pin(Some(daemon.pid()), 1)?;
            pin(None, 1)?;
        }
        let report = Buffer::writable(Gpa(HALF), u32::try_from(span)?);
        let queue = guest.reporting_queue().context("reporting was not acked")?;
        let [first, ..] = self.processes.as_mut_slice() else { return Err(no_process()) };
        first.set_in_flight(false);
        match touch {
            Touch::None => {}
            Touch::Fresh => first.start(Way::Once, RINGS, self.elsewhere, self.page)?,
            Touch::Mapped => first.start(Way::Remap, RINGS, self.elsewhere, self.page)?,
            Touch::Within => first.start(Way::Again, HALF, span, self.page)?,
        }
        if touch != Touch::None {
            let some = if self.backing == Backing::Hugetlb { 32 } else { 4096 };
            wait_for_touches(first, some)?;
        }
        first.set_in_flight(true);
        let start = Instant::now();
        guest.submit_and_wait(queue, &[report])?;
        let seconds = start.elapsed().as_secs_f64();
        first.set_in_flight(false);
        let faults = if touch == Touch::None { Vec::new() } else { first.stop()? };
        drop(guest);
        let summary = daemon.session_summary(PATIENCE)?;
        let discarded = summary.bytes_discarded;
        ensure!(discarded == span, "discarded {discarded} of {span} bytes\n{}", daemon.log());
        daemon.terminate(PATIENCE)?;
        Ok(Discard { seconds, calls: summary.discard_calls, faults, to_map })
    }

    /// Uses all pages once: under a hypervisor the first use of a page takes much longer.
    fn warm_up(&mut self, span: u64) -> Result<()> {
        let Some(first) = self.processes.first_mut() else { return Err(no_process()) };
        first.populate(RINGS, self.elsewhere, self.page)?;
        first.populate(HALF, span, self.page)?;
        self.empty()
    }

    /// Frees all memory but the rings.
    fn empty(&self) -> Result<()> {
        punch(self.ram.file(0), RINGS, BYTES - RINGS)
    }
}

/// Part of memory is wanted for the next case.
impl Drop for Path {
    fn drop(&mut self) {
        let _ = self.empty();
    }
}

fn no_process() -> anyhow::Error {
    anyhow::anyhow!("no process maps the memory")
}

fn punch(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, offset, len).context("emptying the memory file")
}

fn wait_for_touches(process: &Process, some: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while process.touches() < some {
        ensure!(Instant::now() < deadline, "{} of {some} pages touched", process.touches());
        std::thread::yield_now();
    }
    Ok(())
}

/// Puts each end on a CPU of its own, as the daemon's benchmark does.
fn pin(pid: Option<u32>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    let Some(pid) = pid else { return Ok(sched_setaffinity(None, &set)?) };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task: i32 = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(task), &set)?;
    }
    Ok(())
}

/// The CPUs of this thread, which has them again once this is dropped.
struct Processors(CpuSet);

impl Processors {
    fn kept() -> Result<Self> {
        Ok(Self(sched_getaffinity(None)?))
    }

    fn are_two(&self) -> bool {
        self.0.is_set(0) && self.0.is_set(1)
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}
