// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs that do nothing but fault memory in.

use std::fs::{self, File, OpenOptions};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_agent::faulting::{Faulted, FaultingPlan, Mapped};
use guest_agent::pattern::{PAGE_BYTES, PAGE_WORDS};

use crate::memory::Mapping;

/// More than a guest has CPUs.
const MAX_TASKS: u32 = 64;
/// The host's limit for an answer.
const MAX_TIME: Duration = Duration::from_secs(600);
/// Between two looks at the clock.
const PAGES_A_LOOK: usize = 512;

/// Lets the programs of `plan` run to their end.
pub(crate) fn run(plan: FaultingPlan) -> Result<Faulted> {
    let FaultingPlan { mapped, tasks, bytes, milliseconds } = plan;
    let time = Duration::from_millis(milliseconds);
    ensure!((1..=MAX_TASKS).contains(&tasks), "tasks is {tasks}: expected 1 to {MAX_TASKS}");
    ensure!(time <= MAX_TIME, "milliseconds is {milliseconds}: expected {MAX_TIME:?} at the most");
    // A file has its pages in the page cache as well.
    let copies = if mapped == Mapped::File { 2 } else { 1 };
    let wanted = bytes.saturating_mul(u64::from(tasks)).saturating_mul(copies);
    let available = crate::system::meminfo()?.bytes("MemAvailable");
    ensure!(
        wanted <= available / 10 * 9,
        "bytes is {bytes}: {tasks} tasks need {wanted} bytes of memory and {available} are available"
    );
    let start = Instant::now();
    let pages = thread::scope(|scope| {
        let running: Vec<_> =
            (0..tasks).map(|task| scope.spawn(move || fault(mapped, task, bytes, time))).collect();
        running.into_iter().try_fold(0, |sum, task| match task.join() {
            Ok(pages) => pages.map(|pages| sum + pages),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(Faulted { pages, nanoseconds: u64::try_from(start.elapsed().as_nanos())? })
}

/// One program, and the pages that it wrote to.
fn fault(mapped: Mapped, task: u32, bytes: u64, time: Duration) -> Result<u64> {
    let file = match mapped {
        Mapped::Anonymous => None,
        Mapped::File => Some(file(task, bytes)?),
    };
    let start = Instant::now();
    let mut pages = 0;
    while start.elapsed() < time {
        let mut mapping = match &file {
            None => Mapping::new(bytes)?,
            Some(file) => Mapping::of_file(file, bytes)?,
        };
        if file.is_none() {
            mapping.advise_huge_pages();
        }
        for some in mapping.words_mut().chunks_mut(PAGES_A_LOOK * PAGE_WORDS) {
            some.iter_mut().step_by(PAGE_WORDS).for_each(|word| *word = 1);
            pages += some.len() / PAGE_WORDS;
            if start.elapsed() >= time {
                break;
            }
        }
    }
    Ok(u64::try_from(pages)?)
}

/// A file without a name, with a page in the page cache for each of its own: nothing but the private
/// copies come and go.
fn file(task: u32, bytes: u64) -> Result<File> {
    let path = format!("/page_fault.{task}");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.with_context(|| format!("creating {path}"))?;
    fs::remove_file(&path).with_context(|| format!("removing {path}"))?;
    let page = [0; PAGE_BYTES];
    let mut writer = &file;
    for _ in 0..bytes / u64::try_from(PAGE_BYTES)? {
        std::io::Write::write_all(&mut writer, &page)
            .with_context(|| format!("writing {bytes} bytes to {path}"))?;
    }
    Ok(file)
}
