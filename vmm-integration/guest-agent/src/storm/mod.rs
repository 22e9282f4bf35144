// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes that fault a file of hugetlbfs in against hole punch, fork and unsharing.
//!
//! | file | content |
//! |---|---|
//! | [`task`] | one process, by what it does |
//! | [`sharing`] | whether two processes share a page table |
//! | [`mapped`] | the file, mapped |
//! | [`contents`] | what a process knows of the pages that it wrote to |
//! | [`control`] | what the processes share |
//! | [`waits`] | what they wait for |

mod contents;
mod control;
mod mapped;
pub(crate) mod sharing;
pub(crate) mod task;
mod waits;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::process::Child;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::hugetlb::{
    Arrangement, Done, PRIVATE_PAGES, Pool, Sabotage, StormPlan, StormReport, TABLE_PAGES,
};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::system;
use control::Control;
use mapped::Mapped;
use task::Task;
use waits::Trace;

const FOLDER: &str = "/hugetlb";
const FILE: &str = "/hugetlb/storm";
const CONTROL: &str = "/storm.words";
/// More than a guest has CPUs; each has a line of a page.
const MAX_PROCESSES: u32 = 64;
/// The host's limit for an answer.
const MAX_TIME: Duration = Duration::from_secs(600);
/// Between two looks at a process that is to end.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a process may take to be gone once it was killed.
const KILL: Duration = Duration::from_secs(10);

/// One storm at a time.
#[derive(Default)]
pub(crate) struct Storms(Mutex<()>);

impl Storms {
    /// Runs a plan to its end.
    pub(crate) fn run(&self, plan: &StormPlan) -> Result<StormReport> {
        let Ok(_running) = self.0.try_lock() else { bail!("a storm is running: wait for its end") };
        let most = TABLE_PAGES - PRIVATE_PAGES;
        let StormPlan { pages, milliseconds, .. } = *plan;
        ensure!((2..=most).contains(&pages), "pages is {pages}: expected 2 to {most}");
        let processes: u32 = plan.roles.values().fold(0, |sum, &count| sum.saturating_add(count));
        ensure!(
            processes <= MAX_PROCESSES,
            "roles has {processes} processes: expected at most {MAX_PROCESSES}"
        );
        let time = Duration::from_millis(milliseconds);
        ensure!(time <= MAX_TIME, "milliseconds is {milliseconds}: expected {MAX_TIME:?} at most");
        mount_hugetlbfs()?;
        let before = pool()?;
        let file = file()?;
        let mut report = StormReport { before, ..StormReport::default() };
        let ran = run_on(&file, plan, time, &mut report);
        let keeps = (plan.sabotage == Some(Sabotage::KeepsReservation))
            .then(|| Mapped::last_pages(&file, true));
        drop(file);
        fs::remove_file(FILE).with_context(|| format!("removing {FILE}"))?;
        ran?;
        report.after = settled(before, Duration::from_millis(plan.patience_ms))?;
        drop(keeps);
        Ok(report)
    }
}

fn mount_hugetlbfs() -> Result<()> {
    fs::create_dir_all(FOLDER).with_context(|| format!("creating {FOLDER}"))?;
    if fs::exists(format!("{FOLDER}/.mounted")).unwrap_or(false) {
        return Ok(());
    }
    match mount(Some("none"), FOLDER, Some("hugetlbfs"), MsFlags::empty(), Some("pagesize=2M")) {
        Ok(()) | Err(Errno::EBUSY) => {}
        Err(error) => return Err(error).context("mounting hugetlbfs: expected CONFIG_HUGETLBFS"),
    }
    // The file tells the next storm that it is mounted.
    File::create(format!("{FOLDER}/.mounted")).map(drop).context("creating a file of hugetlbfs")
}

fn file() -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(FILE);
    let file = file.with_context(|| format!("creating {FILE}"))?;
    mapped::size(&file)?;
    Ok(file)
}

/// The pool of the default size of huge pages, which is 2 MiB.
fn pool() -> Result<Pool> {
    let meminfo = system::meminfo()?;
    let count = |what: &str| meminfo.bytes(&format!("HugePages_{what}"));
    Ok(Pool {
        total: count("Total"),
        free: count("Free"),
        reserved: count("Rsvd"),
        surplus: count("Surp"),
    })
}

/// The pool, once it is as before or has had time to be so: the kernel frees huge pages later.
fn settled(before: Pool, patience: Duration) -> Result<Pool> {
    let began = Instant::now();
    loop {
        let now = pool()?;
        if now == before || began.elapsed() >= patience {
            return Ok(now);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Runs the processes of a plan, and adds to the report what they did.
fn run_on(file: &File, plan: &StormPlan, time: Duration, report: &mut StormReport) -> Result<()> {
    let &StormPlan { arrangement, sabotage, seed, .. } = plan;
    let pages = usize::try_from(plan.pages)?;
    let second =
        if sabotage == Some(Sabotage::MapsApart) { Arrangement::Apart } else { arrangement };
    report.sharing = sharing::of(FILE, pages, [arrangement, second])?;
    mapped::punch(file, 0, pages)?;
    let control = Control::open(CONTROL, true)?;
    let mut running = Running(Vec::new());
    for (&role, &count) in &plan.roles {
        for nr in 0..count {
            let task = Task {
                role,
                number: running.0.len(),
                of_role: (usize::try_from(nr)?, usize::try_from(count)?),
                arrangement,
                pages,
                seed,
                file: FILE.to_owned(),
                control: CONTROL.to_owned(),
                sabotage,
            };
            let child = task.start()?;
            running.0.push((task, child));
        }
    }
    let trace = if plan.trace { Some(Trace::start()?) } else { None };
    let began = Instant::now();
    for (_, child) in &mut running.0 {
        drop(child.stdin.take());
    }
    // The length of the storm: nothing is waited for.
    thread::sleep(time);
    control.stop();
    report.nanoseconds = u64::try_from(began.elapsed().as_nanos())?;
    let deadline = Instant::now() + Duration::from_millis(plan.patience_ms);
    for (task, child) in &mut running.0 {
        let name = format!("{:?} {}", task.role, task.number);
        match done(child, deadline) {
            Ok(Some(done)) => report.done.entry(task.role).or_default().add(done),
            Ok(None) => report.failed.push(format!("{name} does not end, {}", place(child.id()))),
            Err(error) => report.failed.push(format!("{name}: {error:#}")),
        }
    }
    if let Some(trace) = trace {
        report.waits = trace.finish()?;
    }
    Ok(())
}

/// The processes, which end with this.
struct Running(Vec<(Task, Child)>);

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            // One that has ended is not there to be killed.
            let _ = child.kill();
        }
        let deadline = Instant::now() + KILL;
        for (_, child) in &mut self.0 {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(LOOK_EVERY);
            }
        }
    }
}

/// What a process did, once it has ended; nothing if it does not.
fn done(child: &mut Child, deadline: Instant) -> Result<Option<Done>> {
    let status = loop {
        if let Some(status) = child.try_wait().context("looking at a process")? {
            break status;
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    };
    ensure!(status.success(), "ended with {status}: see the console");
    let mut text = Vec::new();
    let output = child.stdout.as_mut().context("a process without output")?;
    output.read_to_end(&mut text).context("reading what a process says")?;
    serde_json::from_slice(&text).map(Some).context("what a process says")
}

/// Where a process is in the kernel.
fn place(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/stack")) {
        Ok(stack) => stack.lines().map(str::trim).collect::<Vec<_>>().join(" < "),
        Err(error) if error.kind() == ErrorKind::NotFound => "gone".to_owned(),
        Err(error) => format!("at an unknown place ({error})"),
    }
}

/// The roles of a process that the program is started for.
pub(crate) fn role(name: &str, args: impl Iterator<Item = String>) -> Option<Result<()>> {
    match name {
        task::ROLE => Some(task::run(args)),
        sharing::ROLE => Some(sharing::run(args)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use guest_agent::hugetlb::Role;

    use super::*;

    #[test]
    fn absurd_plan_is_refused() {
        let storms = Storms::default();
        let ok = StormPlan::default();
        for (plan, expected) in [
            (StormPlan { pages: 0, ..ok.clone() }, "pages is 0: expected 2 to 508"),
            (StormPlan { pages: 512, ..ok.clone() }, "pages is 512: expected 2 to 508"),
            (StormPlan { milliseconds: u64::MAX, ..ok.clone() }, "expected 600s at most"),
            (
                StormPlan {
                    roles: BTreeMap::from([(Role::Mapper, u32::MAX), (Role::Writer, 9)]),
                    ..ok
                },
                "processes: expected at most 64",
            ),
        ] {
            let error = storms.run(&plan).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
