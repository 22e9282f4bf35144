// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One task that faults memory in, a process of its own.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_agent::pattern::PAGE_WORDS;
use guest_agent::placement::{PlacedTask, Scope};
use guest_driver::random::Random;
use nix::errno::Errno;

use super::policy;
use super::progress::Progress;
use crate::memory::Mapping;
use crate::system;

/// The nice value of a task.
const LOWEST_PRIORITY: libc::c_int = 19;
/// Pages that a page table maps.
const TABLE_PAGES: usize = 512;

/// Makes the program run as such a process.
pub(crate) const ROLE: &str = "fault-placed";

/// Starts one, which counts in the file `progress` and joins the cpuset with the file `joins`.
pub(super) fn start(
    task: &PlacedTask,
    seed: u64,
    progress: &str,
    joins: Option<&str>,
) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args([ROLE, &serde_json::to_string(task)?, &seed.to_string(), progress]);
    command.args(joins).stdin(Stdio::null());
    command.spawn().context("starting a task")
}

/// Is such a process.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut next = |what: &'static str| args.next().context(what);
    let task: PlacedTask = serde_json::from_str(&next("no task")?).context("the task")?;
    let mut random = Random(next("no seed")?.parse().context("the seed")?);
    let progress = Progress::open(&next("no file of counters")?)?;
    let mut mapping = Mapping::new(task.bytes)?;
    // Before it joins: a policy of nodes that are not in the cpuset at this moment is refused.
    policy::set(&task, &mapping)?;
    if let Some(joins) = args.next() {
        system::write_file(&joins, "0")?;
    }
    let mut round = 0;
    be_nice()?;
    let step = if task.sparse { TABLE_PAGES } else { 1 };
    loop {
        for page in mapping.words_mut().chunks_mut(PAGE_WORDS).step_by(step) {
            page[0] = 1;
            progress.pages.fetch_add(1, Ordering::Relaxed);
        }
        if task.sparse {
            mapping = Mapping::new(task.bytes)?;
            if task.scope == Scope::Mapping {
                policy::set(&task, &mapping)?;
            }
        } else {
            mapping.drop_pages()?;
        }
        progress.rounds.fetch_add(1, Ordering::Relaxed);
        round += 1;
        if round == task.rounds {
            return Ok(());
        }
        if task.rest_ms > 0 {
            progress.rests.store(true, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(random.below(task.rest_ms + 1)));
            progress.rests.store(false, Ordering::Relaxed);
        }
    }
}

/// Leaves the CPU to what changes the task's cpuset and zones: there may be more tasks than CPUs.
fn be_nice() -> Result<()> {
    // SAFETY: it sets a number of the calling process.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST_PRIORITY) };
    Errno::result(result).context("lowering the priority of a task").map(drop)
}
