// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations and what others do beside them, in the guest.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::machine::Machine;
use super::operation::Operation;
use super::seen::{OTHER_OFFLINE, Outcome, Step};

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";
const GIGANTIC: &str = "hugepages-1048576kB";
const HUGE: (&str, u64) = ("hugepages-2048kB", 8);
/// An allocation.
const USED: (u32, u64, u16) = (202, 8 << 20, 3);
const EVERY: Duration = Duration::from_millis(5);

/// An offline that waits for nothing ends within this time.
const APART: Duration = Duration::from_millis(300);

/// Bytes that were left to do, by time.
pub(super) type Left = Vec<(Duration, u64)>;

/// What came of an operation.
pub(super) struct Ran {
    pub(super) step: Step,
    /// The same once more, right after it was refused.
    pub(super) again: Option<Step>,
    /// Of an operation that goes in steps.
    pub(super) left: Left,
}

/// Runs an operation to its end, at most so long, and once more if it is refused.
pub(super) fn run(machine: &Machine, operation: Operation, longest: Duration) -> Result<Ran> {
    if operation == Operation::VirtioMem {
        let (step, left) = unplug(machine, longest)?;
        return Ok(Ran { step, again: None, left });
    }
    let once = || {
        step(|| match operation {
            Operation::Offline => machine.offline(machine.target),
            _ => pool(machine, (GIGANTIC, 1)),
        })
    };
    let step = once()?;
    let again = if step.outcome == Outcome::Done { None } else { Some(once()?) };
    undo(machine, operation, again.as_ref().unwrap_or(&step))?;
    Ok(Ran { step, again, left: Left::new() })
}

/// Runs an operation with no report kept until it is done; returns how many tries it took.
pub(super) fn run_afterwards(
    machine: &Machine,
    operation: Operation,
    longest: Duration,
) -> Result<u32> {
    let began = Instant::now();
    for tries in 1.. {
        match run(machine, operation, longest)?.step.outcome {
            Outcome::Done => return Ok(tries),
            Outcome::Refused(why) => ensure!(
                began.elapsed() < longest,
                "{operation} after the acknowledgement: {why} for {longest:?}"
            ),
        }
        thread::sleep(EVERY);
    }
    unreachable!("it returns")
}

/// Undoes what the last step of an operation did.
fn undo(machine: &Machine, operation: Operation, step: &Step) -> Result<()> {
    match (operation, &step.outcome) {
        (Operation::Offline, Outcome::Done) => machine.online(machine.target),
        (Operation::GiganticPage, _) => empty(machine, GIGANTIC),
        _ => Ok(()),
    }
}

/// Unplugs all memory of the virtio-mem device. Its driver tries again by a timer.
fn unplug(machine: &Machine, longest: Duration) -> Result<(Step, Left)> {
    let began = Instant::now();
    machine.request(0)?;
    let mut left = Left::new();
    let outcome = loop {
        let (bytes, at) = (machine.plugged()?, began.elapsed());
        if left.last().is_none_or(|(_, last)| *last != bytes) {
            left.push((at, bytes));
        }
        if bytes == 0 {
            break Outcome::Done;
        }
        if at >= longest {
            break Outcome::Refused(format!("{} MiB left", bytes >> 20));
        }
        thread::sleep(EVERY);
    };
    Ok((Step { outcome, began, ended: Instant::now() }, left))
}

/// Does what others do beside an operation, each by its name.
pub(super) fn others(machine: &Machine, operation: Operation) -> Result<Vec<(&'static str, Step)>> {
    // The guest begins what it is asked for in order; an offline that waits has its lock by then.
    machine.agent().hello()?;
    let until = Instant::now() + APART;
    while operation == Operation::Offline
        && !machine.goes_offline(machine.target)?
        && Instant::now() < until
    {
        thread::sleep(EVERY);
    }
    thread::scope(|scope| {
        let offline = scope.spawn(|| step(|| machine.offline(machine.other)));
        let mut seen = vec![
            ("pagetypeinfo", read(machine, "/proc/pagetypeinfo")?),
            ("zoneinfo", read(machine, "/proc/zoneinfo")?),
            ("allocation", step(|| allocation(machine))?),
        ];
        // A pool that takes a page of a block makes offlining it fail, whatever is reported.
        let until = Instant::now() + APART;
        while !offline.is_finished() && Instant::now() < until {
            thread::sleep(EVERY);
        }
        seen.push(("huge-pages", step(|| pool(machine, HUGE))?));
        empty(machine, HUGE.0)?;
        let offline = offline.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if offline.outcome == Outcome::Done {
            machine.online(machine.other)?;
        }
        seen.insert(0, (OTHER_OFFLINE, offline));
        Ok(seen)
    })
}

fn step(what: impl FnOnce() -> Result<Outcome>) -> Result<Step> {
    let began = Instant::now();
    let outcome = what()?;
    Ok(Step { outcome, began, ended: Instant::now() })
}

/// Fills a pool of huge pages.
fn pool(machine: &Machine, (pool, pages): (&str, u64)) -> Result<Outcome> {
    let path = format!("{HUGE_PAGES}/{pool}/nr_hugepages");
    machine.agent().write_file(&path, &pages.to_string())?;
    let there = machine.agent().read_file(&path)?;
    let there = there.trim();
    Ok(if there == pages.to_string() {
        Outcome::Done
    } else {
        Outcome::Refused(format!("{there} of {pages} pages"))
    })
}

fn empty(machine: &Machine, pool: &str) -> Result<()> {
    machine.agent().write_file(&format!("{HUGE_PAGES}/{pool}/nr_hugepages"), "0")
}

fn read(machine: &Machine, path: &str) -> Result<Step> {
    step(|| machine.agent().read_file(path).map(|_| Outcome::Done))
}

fn allocation(machine: &Machine) -> Result<Outcome> {
    let ((id, bytes, generation), agent) = (USED, machine.agent());
    agent.alloc(id, bytes, generation)?;
    agent.expect_intact(id)?;
    agent.free(id)?;
    Ok(Outcome::Done)
}
