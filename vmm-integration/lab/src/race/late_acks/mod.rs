// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `late-acks`: operations that take memory whose report is out, while the acknowledgement is late.
//!
//! | file | content |
//! |---|---|
//! | [`settings`] | the parameters |
//! | [`operation`] | the operations |
//! | [`machine`] | the guest, and the device that keeps its reports |
//! | [`attempt`] | operations and what others do beside them, in the guest |
//! | [`seen`] | what is seen of them |
//! | [`judge`] | figures and the verdict |

mod attempt;
mod judge;
mod machine;
mod operation;
mod seen;
mod settings;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::attempt::Ran;
use self::machine::Machine;
use self::operation::Operation;
use self::seen::{Cell, Outcome};
use self::settings::{Late, Settings};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::toolbox;
use crate::progress;
use crate::scheme::KernelScheme;
use crate::store::{Findings, Place, VerdictKind};

/// The schemes: mainline, and the module with its default tracker.
const SCHEMES: [KernelScheme; 3] =
    [KernelScheme::Mainline, KernelScheme::SectionBitmapPull, KernelScheme::SectionBitmapIsolate];

/// An operation beside a scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beside {
    operation: Operation,
    scheme: KernelScheme,
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.operation, self.scheme)
    }
}

impl Case for Beside {
    fn place(&self) -> Place {
        Place { table: self.operation.to_string(), column: self.scheme.to_string() }
    }
}

/// See the module.
pub(super) struct LateAcks;

impl Experiment for LateAcks {
    type Parameters = Settings;
    type Case = Beside;

    fn name(&self) -> &'static str {
        "late-acks"
    }

    fn about(&self) -> &'static str {
        "Takes memory in real Linux whose report is not acknowledged yet: a memory block goes offline, a \
         gigantic page is allocated, a virtio-mem device is unplugged. The acknowledgement comes at once, \
         100 ms late, 1 s late, or never. Mainline beside the module that pulls and that isolates: does the \
         operation wait or fail, how long, and what do others see meanwhile?"
    }

    fn repeats(&self, _: &Beside) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<Beside> {
        let of = |operation| SCHEMES.map(|scheme| Beside { operation, scheme });
        Operation::ALL.into_iter().flat_map(of).collect()
    }

    fn run(&self, case: &Beside, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => toolbox,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let machine = Machine::boot(&toolbox, case.scheme)?;
        let mut cells = Vec::new();
        let all = u64::from(settings.runs) * settings.late.len() as u64;
        for _ in 0..settings.runs {
            for &late in &settings.late {
                context.progress.at(cells.len() as u64, all);
                context.progress.say(&format!("acknowledgement {late}"));
                let what = || format!("{case}, acknowledgement {late}");
                cells.push(cell(&machine, case.operation, late, settings).with_context(what)?);
            }
        }
        let kernel = machine.kernel().to_owned();
        machine.finish()?;
        judge::findings(case.operation, case.scheme, &kernel, &cells)
    }
}

/// Runs an operation beside a report that is acknowledged `late`, and others beside it.
fn cell(machine: &Machine, operation: Operation, late: Late, settings: &Settings) -> Result<Cell> {
    let [limit, patience] = [settings.limit, settings.patience].map(Duration::from_millis);
    let reported = machine.keep_report(operation)?;
    let (acknowledged, ran, others) = thread::scope(|scope| {
        let begin = Instant::now();
        let running = scope.spawn(|| attempt::run(machine, operation, limit + patience));
        let others = scope.spawn(|| attempt::others(machine, operation));
        let waited = progress::wait_for(begin + late.time(limit));
        // Also of an interrupted run: what waits for it ends.
        let acknowledged = machine.acknowledge();
        let (ran, others) = (joined(running)?, joined(others)?);
        waited?;
        anyhow::Ok((acknowledged, ran, others))
    })?;
    let Ran { step, again, left } = ran;
    let tries = match step.outcome {
        Outcome::Done => None,
        Outcome::Refused(_) => Some(attempt::run_afterwards(machine, operation, patience)?),
    };
    machine.check()?;
    Ok(Cell { late, reported, acknowledged, operation: step, again, left, others, tries })
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
