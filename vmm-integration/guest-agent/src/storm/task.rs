// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One process of a storm.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_agent::hugetlb::{Arrangement, Done, PRIVATE_PAGES, Role, Sabotage, bucket};
use guest_driver::random::Random;
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use serde::{Deserialize, Serialize};

use super::contents::{Contents, wrong};
use super::control::Control;
use super::mapped::{Mapped, PAGE_BYTES, punch};

/// Makes the program run as such a process.
pub(crate) const ROLE: &str = "storm";
/// Names of the processes begin so.
pub(super) const NAME: &str = "storm-";
/// Holes are punched so many pages at a time, at most.
const MOST_PUNCHED: u64 = 8;
/// Pages that a splitter looks at before and behind the split.
const SPLIT_CHECKS: usize = 4;
/// A child's exit status if its contents were wrong.
const WRONG: i32 = 3;
/// In a private page: the first word that is written.
const PRIVATE: u64 = 0x7072_6976_0000_0000;

/// What a process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) role: Role,
    /// Among all.
    pub(super) number: usize,
    /// Among those of its role, and how many these are.
    pub(super) of_role: (usize, usize),
    pub(super) arrangement: Arrangement,
    pub(super) pages: usize,
    pub(super) seed: u64,
    pub(super) file: String,
    pub(super) control: String,
    pub(super) sabotage: Option<Sabotage>,
}

impl Task {
    /// Starts the process. It begins when its standard input ends, and writes [`Done`] when it ends.
    pub(super) fn start(&self) -> Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        command.args([ROLE, &serde_json::to_string(self)?]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().context("starting a process")
    }
}

/// Is such a process.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let task: Task = serde_json::from_str(&args.next().context("no task")?).context("the task")?;
    let name = format!("{NAME}{:?}", task.role).to_lowercase();
    prctl::set_name(&std::ffi::CString::new(name)?).context("naming a process")?;
    let file = OpenOptions::new().read(true).write(true).open(&task.file);
    let file = file.with_context(|| format!("opening {}", task.file))?;
    let control = Control::open(&task.control, false)?;
    let process = Process {
        random: Random(task.seed ^ (task.number as u64) << 40),
        contents: Contents::new(task.number, task.pages),
        done: Done::default(),
        task: &task,
        file: &file,
        control: &control,
    };
    let done = process.run()?;
    println!("{}", serde_json::to_string(&done)?);
    Ok(())
}

/// Page faults of this process so far.
pub(super) fn faults() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("counting faults")?;
    Ok(u64::try_from(usage.minor_page_faults() + usage.major_page_faults())?)
}

struct Process<'a> {
    task: &'a Task,
    file: &'a File,
    control: &'a Control,
    random: Random,
    contents: Contents,
    done: Done,
}

impl Process<'_> {
    fn run(mut self) -> Result<Done> {
        let kept = match self.task.role {
            Role::Forker | Role::Writer => Some(self.map()?),
            _ => None,
        };
        if self.task.role == Role::Forker {
            self.touch(kept.as_ref());
        }
        std::io::stdin().read_to_end(&mut Vec::new()).context("waiting for the begin")?;
        let before = faults()?;
        while self.control.goes_on() {
            match (self.task.role, &kept) {
                (Role::Mapper, _) => {
                    let mapped = self.map()?;
                    self.touch(Some(&mapped));
                }
                (Role::Forker, _) => self.fork(|| 0).map(drop)?,
                (Role::Writer, Some(mapped)) => self.write(mapped)?,
                (Role::Puncher, _) => self.punch()?,
                (Role::Splitter, _) => self.split()?,
                (Role::Private, _) => self.private()?,
                (Role::Writer, None) => bail!("a writer without a mapping"),
            }
            self.done.rounds += 1;
        }
        self.done.faults = faults()? - before;
        if self.task.sabotage == Some(Sabotage::IgnoresStop) && self.task.number == 0 {
            // Until it is killed.
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        Ok(self.done)
    }

    fn map(&self) -> Result<Mapped> {
        Mapped::whole(self.file, self.task.arrangement)
    }

    fn touch(&self, mapped: Option<&Mapped>) {
        for page in 0..self.task.pages {
            if let Some(mapped) = mapped {
                mapped.read(page, 0);
            }
        }
    }

    /// Forks a child that does something and exits; returns its exit status.
    fn fork(&self, child: impl FnOnce() -> i32) -> Result<i32> {
        // SAFETY: the process has one thread, so the child may do anything; it leaves by `_exit`.
        match unsafe { fork() }.context("forking")? {
            ForkResult::Child => {
                let status = child();
                // SAFETY: it ends the process at once, and nothing of the parent's is written.
                unsafe { libc::_exit(status) }
            }
            ForkResult::Parent { child } => match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, status)) => Ok(status),
                other => bail!("a forked child ended so: {other:?}"),
            },
        }
    }

    fn page(&mut self) -> usize {
        self.random.index(self.task.pages)
    }

    fn write(&mut self, mapped: &Mapped) -> Result<()> {
        let page = self.page();
        let before = faults()?;
        let began = Instant::now();
        self.contents.check(page, mapped, self.control, &mut self.done);
        let took = began.elapsed();
        if faults()? > before {
            let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            *self.done.latencies.entry(bucket(ns)).or_default() += 1;
        }
        self.contents.write(page, mapped, self.control);
        if self.task.sabotage == Some(Sabotage::WritesElsewhere) {
            self.contents.write_elsewhere(page, mapped);
        }
        Ok(())
    }

    /// Punches pages of those that are its own to punch.
    fn punch(&mut self) -> Result<()> {
        let (nr, count) = self.task.of_role;
        let (from, to) = (self.task.pages * nr / count, self.task.pages * (nr + 1) / count);
        if from == to {
            bail!("{} pages are too few for {count} that punch", self.task.pages);
        }
        let first = from + self.random.index(to - from);
        let most = usize::try_from(1 + self.random.below(MOST_PUNCHED))?;
        let pages = most.min(to - first);
        let each = first..first + pages;
        each.clone().for_each(|page| self.control.begin_punch(page));
        if self.task.sabotage != Some(Sabotage::SkipsPunch) {
            punch(self.file, first, pages)?;
        }
        each.for_each(|page| self.control.end_punch(page));
        Ok(())
    }

    fn split(&mut self) -> Result<()> {
        let mapped = self.map()?;
        let at = self.page();
        let looks: Vec<usize> = (0..2 * SPLIT_CHECKS).map(|_| self.page()).collect();
        let (before, behind) = looks.split_at(SPLIT_CHECKS);
        for &page in before {
            self.contents.check(page, &mapped, self.control, &mut self.done);
            self.contents.write(page, &mapped, self.control);
        }
        let how = self.random.below(3);
        match how {
            0 => mapped.protect(at)?,
            1 => mapped.unmap(at)?,
            _ => mapped.drop_page(at)?,
        }
        for &page in behind {
            if page == at && how == 1 {
                continue;
            }
            self.contents.check(page, &mapped, self.control, &mut self.done);
            if page != at || how != 0 {
                self.contents.write(page, &mapped, self.control);
            }
        }
        Ok(())
    }

    /// Parent and child each write to a page of its own; neither may see the other's.
    fn private(&mut self) -> Result<()> {
        let shared = self.task.sabotage == Some(Sabotage::SharesPrivate);
        let mapped = Mapped::last_pages(self.file, shared)?;
        let pages = PRIVATE_PAGES as usize;
        let value = |page: usize, round: u64| PRIVATE | (page as u64) << 24 | (round & 0xff_ffff);
        let round = self.done.rounds + 1;
        let last_word = PAGE_BYTES / size_of::<u64>() - 1;
        for page in 0..pages {
            mapped.write(page, 0, value(page, round));
            mapped.write(page, last_word, value(page, round));
        }
        let at = self.random.index(pages);
        let intact = |but: Option<usize>| {
            (0..pages).filter(|page| Some(*page) != but).find(|&page| {
                [0, last_word].into_iter().any(|word| mapped.read(page, word) != value(page, round))
            })
        };
        let status = self.fork(|| {
            let inherited = intact(None).is_none();
            mapped.write(at, 0, !value(at, round));
            let kept = mapped.read(at, last_word) == value(at, round);
            if inherited && kept && intact(Some(at)).is_none() { 0 } else { WRONG }
        })?;
        self.done.checks += pages as u64;
        match status {
            0 => {}
            WRONG => wrong(&mut self.done, || "a child has not what its parent wrote".to_owned()),
            other => bail!("a child ended with status {other}"),
        }
        if let Some(page) = intact(None) {
            wrong(&mut self.done, || {
                format!("private page {page} holds {:#x}", mapped.read(page, 0))
            });
        }
        Ok(())
    }
}
