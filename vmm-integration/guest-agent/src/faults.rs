// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs that do nothing but fault memory in.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_agent::faulting::{Faulted, FaultingPlan, Work};
use guest_agent::pattern::{PAGE_BYTES, PAGE_WORDS};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::lock::lock;
use crate::memory::{self, Mapping};

/// More than a guest has CPUs.
const MAX_TASKS: u32 = 64;
/// The host's limit for an answer.
const MAX_TIME: Duration = Duration::from_secs(600);
/// Between two looks at the clock.
const PAGES_A_LOOK: usize = 512;
/// Pages that are written with a system call: 64 KiB.
const PAGES_A_WRITE: usize = 16;
static WRITTEN: [u8; PAGES_A_WRITE * PAGE_BYTES] = [1; PAGES_A_WRITE * PAGE_BYTES];

/// The files that programs map: one for each task, which stays for the same programs.
#[derive(Default)]
pub(crate) struct Files(Mutex<HashMap<u32, MappedFile>>);

/// A file without a name, with a page in the page cache for each of its own: nothing but the private
/// copies come and go.
struct MappedFile {
    file: Arc<File>,
    bytes: u64,
}

impl Files {
    /// The file of a task.
    fn of(&self, task: u32, bytes: u64) -> Result<Arc<File>> {
        let mut files = lock(&self.0);
        if let Some(mapped) = files.get(&task) {
            return Ok(Arc::clone(&mapped.file));
        }
        let file = Arc::new(filled_file(task, bytes)?);
        files.insert(task, MappedFile { file: Arc::clone(&file), bytes });
        Ok(file)
    }

    /// Removes the files that `plan` does not use; returns the size of the others in bytes.
    fn keep_for(&self, plan: FaultingPlan) -> u64 {
        let mut files = lock(&self.0);
        let used = plan.work == Work::File;
        files.retain(|task, mapped| used && *task < plan.tasks && mapped.bytes == plan.bytes);
        files.values().map(|mapped| mapped.bytes).sum()
    }
}

/// Lets the programs of `plan` run to their end.
pub(crate) fn run(plan: FaultingPlan, files: &Files) -> Result<Faulted> {
    let FaultingPlan { work, tasks, bytes, milliseconds } = plan;
    let time = Duration::from_millis(milliseconds);
    ensure!((1..=MAX_TASKS).contains(&tasks), "tasks is {tasks}: expected 1 to {MAX_TASKS}");
    ensure!(time <= MAX_TIME, "milliseconds is {milliseconds}: expected {MAX_TIME:?} at the most");
    let wanted = bytes.saturating_mul(u64::from(tasks)).saturating_mul(work.copies());
    let there = files.keep_for(plan);
    let available = crate::system::meminfo()?.bytes("MemAvailable").saturating_add(there);
    ensure!(
        wanted <= available / 10 * 9,
        "bytes is {bytes}: {tasks} tasks need {wanted} bytes of memory and {available} are available"
    );
    memory::length(bytes)?;
    // Before any begins: none has less time for it.
    let sources = (0..tasks).map(|task| Source::of(work, task, bytes, files));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let pages = thread::scope(|scope| {
        let running: Vec<_> =
            sources.iter().map(|source| scope.spawn(|| program(source, bytes, time))).collect();
        running.into_iter().try_fold(0, |sum, task| match task.join() {
            Ok(pages) => pages.map(|pages| sum + pages),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(Faulted { pages, nanoseconds: u64::try_from(start.elapsed().as_nanos())? })
}

/// One program, and the pages that it took.
fn program(source: &Source, bytes: u64, time: Duration) -> Result<u64> {
    let start = Instant::now();
    let (all, mut pages) = (usize::try_from(bytes)? / PAGE_BYTES, 0);
    while start.elapsed() < time {
        let mut taking = Taking::begin(source, bytes)?;
        for first in (0..all).step_by(PAGES_A_LOOK) {
            let some = first..all.min(first + PAGES_A_LOOK);
            pages += some.len();
            taking.take(some)?;
            if start.elapsed() >= time {
                break;
            }
        }
        taking.free()?;
    }
    Ok(u64::try_from(pages)?)
}

/// What a program takes pages from.
enum Source {
    Anonymous { populated: bool },
    Mapped(Arc<File>),
    Written(File),
}

impl Source {
    fn of(work: Work, task: u32, bytes: u64, files: &Files) -> Result<Self> {
        Ok(match work {
            Work::Anonymous => Self::Anonymous { populated: false },
            Work::Populate => Self::Anonymous { populated: true },
            Work::File => Self::Mapped(files.of(task, bytes)?),
            Work::Write => {
                let file = memfd_create("write", MFdFlags::empty());
                Self::Written(file.context("creating a file in tmpfs")?.into())
            }
        })
    }
}

/// Pages that a program takes, a part of them at a time.
enum Taking<'a> {
    Touch(Mapping),
    Populate(Mapping),
    Write(&'a File),
}

impl<'a> Taking<'a> {
    fn begin(source: &'a Source, bytes: u64) -> Result<Self> {
        Ok(match source {
            Source::Written(file) => Self::Write(file),
            Source::Mapped(file) => Self::Touch(Mapping::of_file(file, bytes)?),
            Source::Anonymous { populated } => {
                let mut mapping = Mapping::new(bytes)?;
                mapping.advise_huge_pages();
                if *populated { Self::Populate(mapping) } else { Self::Touch(mapping) }
            }
        })
    }

    fn take(&mut self, pages: Range<usize>) -> Result<()> {
        match self {
            Self::Touch(mapping) => {
                let words = pages.start * PAGE_WORDS..pages.end * PAGE_WORDS;
                let some = mapping.words_mut().get_mut(words).context("beyond the mapping")?;
                some.iter_mut().step_by(PAGE_WORDS).for_each(|word| *word = 1);
                Ok(())
            }
            Self::Populate(mapping) => mapping.populate(pages),
            Self::Write(file) => {
                for first in pages.clone().step_by(PAGES_A_WRITE) {
                    let some = (pages.end - first).min(PAGES_A_WRITE) * PAGE_BYTES;
                    file.write_all(&WRITTEN[..some]).context("writing to a file in tmpfs")?;
                }
                Ok(())
            }
        }
    }

    fn free(self) -> Result<()> {
        match self {
            Self::Touch(mapping) | Self::Populate(mapping) => drop(mapping),
            Self::Write(mut file) => {
                file.set_len(0).context("truncating a file in tmpfs")?;
                file.rewind().context("going to the start of a file")?;
            }
        }
        Ok(())
    }
}

fn filled_file(task: u32, bytes: u64) -> Result<File> {
    let path = format!("/page_fault.{task}");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.with_context(|| format!("creating {path}"))?;
    fs::remove_file(&path).with_context(|| format!("removing {path}"))?;
    let page = [0; PAGE_BYTES];
    let mut writer = &file;
    for _ in 0..bytes / u64::try_from(PAGE_BYTES)? {
        writer.write_all(&page).with_context(|| format!("writing {bytes} bytes to {path}"))?;
    }
    Ok(file)
}
