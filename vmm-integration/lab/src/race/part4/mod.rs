// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bugs, races and hypotheses of the reference's part 4, by their numbers there: each is tried
//! when its case is run, and the verdict is what was seen then.
//!
//! | file | what |
//! |---|---|
//! | [`steps`] | the model, step by step on one thread |
//! | `linux` | real Linux beside a device that remembers each report |
//! | `devices` | what the daemon makes of it |
//!
//! Others run a configuration of the model with real threads until it goes wrong. What the model
//! shows is a finding about the model. Nothing here is a bug of Linux unless real Linux shows it.

mod devices;
mod linux;
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result};

use super::experiments::toolbox;
use crate::experiment::{Context, Experiment, Repeats};
use crate::faults::plan::FaultKind;
use crate::parameters::{Kind, Parameter, Settings};
use crate::store::{Findings, Verdict, VerdictKind};
use vmm_integration::vmm::qemu::{self, Toolbox};

/// What was seen, and in a sentence.
type Seen = (VerdictKind, String);

/// What is tried of an entry.
enum How {
    /// A configuration of the model's catalogue, with real threads.
    Threads(&'static str),
    /// The model, step by step.
    Steps(fn() -> Result<Seen>),
    /// Real Linux.
    Linux(fn(&Toolbox, &mut Findings) -> Result<Seen>),
    /// A fault, in the model and in Linux.
    Fault(FaultKind),
    /// Our daemon with the model as its guest.
    Daemon(fn(&std::path::Path) -> Result<Seen>),
    /// Our daemon with Linux as its guest.
    DaemonLinux(fn(&Toolbox, &std::path::Path) -> Result<Seen>),
    /// It cannot be tried here, and why.
    Not(&'static str),
}

/// An entry of part 4.
struct Entry {
    /// Its number there.
    id: &'static str,
    what: &'static str,
    /// All of this is tried.
    how: &'static [How],
}

const fn entry(id: &'static str, what: &'static str, how: &'static [How]) -> Entry {
    Entry { id, what, how }
}

use How::{Daemon, DaemonLinux, Linux, Not, Steps, Threads};

/// Of 4.1 what concerns reporting, all of 4.2. Each of 4.3 is a kind of fault.
const ENTRIES: [Entry; 33] = [
    entry(
        "4.1-1",
        "the worker runs while freeze deletes the queue",
        &[Not("needs a guest that is suspended and woken, of which the agent's port goes, too")],
    ),
    entry(
        "4.1-2",
        "a notification is lost and the driver waits for ever",
        &[How::Fault(FaultKind::LostInterrupt)],
    ),
    entry("4.1-3", "dense and fixed queue numbers", &[Daemon(devices::numberings)]),
    entry(
        "4.1-4",
        "reporting without F_PAGE_POISON in a guest that clears pages",
        &[DaemonLinux(devices::poison)],
    ),
    entry(
        "4.1-5",
        "pageblocks as large as those of arm64 with 64 KiB pages are hardly ever reported",
        &[Steps(steps::large_pageblocks)],
    ),
    entry(
        "4.1-7",
        "the largest order is off by one, and order 0 is taken for unset (4.1-8)",
        &[Linux(linux::extreme_orders)],
    ),
    entry("4.1-11", "double isolation before 4.17", &[Threads("linux-4.16-double-isolation")]),
    entry(
        "4.1-12",
        "a freed page reaches a per-CPU list behind the drain",
        &[Threads("linux-5.8-pcp-race")],
    ),
    entry(
        "4.1-13",
        "half of a block larger than a pageblock is isolated, before 5.19",
        &[Steps(steps::isolated_half_of_a_large_block)],
    ),
    entry(
        "4.1-14",
        "`zone-bitmap`, marked before the page is on its list",
        &[Threads("zone-bitmap-marked-before-free")],
    ),
    entry(
        "4.1-15",
        "out of memory because reports hold too much",
        &[Threads("no-watermark-guard")],
    ),
    entry("4.1-17", "discarding is inhibited", &[Daemon(devices::inhibited)]),
    entry(
        "4.1-18",
        "free huge pages in their pool are not reported",
        &[Linux(linux::pool_is_not_reported)],
    ),
    entry("4.1-19", "used length where nothing was written", &[How::Fault(FaultKind::UsedLength)]),
    entry(
        "4.1-21",
        "memory that comes online is reported at once",
        &[Linux(linux::online_is_reported)],
    ),
    entry(
        "4.1-22",
        "freed memory stays with the host for the delay, whatever happens to the guest then",
        &[Linux(linux::delay_before_a_report)],
    ),
    entry(
        "4.2-a",
        "a pass that stops for want of memory leaves pages unreported",
        &[Linux(linux::pass_stops), Threads("reported-flag-low-watermark")],
    ),
    entry(
        "4.2-b",
        "a zone below its watermark consumes the request",
        &[Linux(linux::zone_is_low), Threads("reported-flag-low-watermark")],
    ),
    entry(
        "4.2-c",
        "freed into an isolated block, not reported after the undo",
        &[Steps(steps::freed_while_isolated), Threads("reported-flag-free-into-isolated")],
    ),
    entry(
        "4.2-c-converse",
        "isolating half of a block reports the other half again",
        &[Linux(linux::isolation_reports_again), Steps(steps::isolation_reports_again)],
    ),
    entry(
        "4.2-n",
        "the reporter's own isolation triggers the next pass",
        &[Threads("section-bit-self-trigger")],
    ),
    entry(
        "4.2-d",
        "merging two reported blocks loses the mark",
        &[Linux(linux::merging_reports_again), Steps(steps::merging_loses_the_mark)],
    ),
    entry(
        "4.2-e",
        "half of a pulled block is isolated, and it is put back whole",
        &[Steps(steps::put_back_whole_on_an_isolated_half), Threads("pull-isolated-half")],
    ),
    entry(
        "4.2-f",
        "a backend that hangs makes offlining spin and unloading wait",
        &[Linux(linux::hung_backend)],
    ),
    entry(
        "4.2-g",
        "page_reporting_order is changed during a pass",
        &[Linux(linux::order_changes_in_a_pass)],
    ),
    entry(
        "4.2-h",
        "reporting turns unmovable blocks into movable ones",
        &[Linux(linux::reporting_makes_movable), Threads("pull-makes-movable")],
    ),
    entry(
        "4.2-i",
        "a freed huge page waits on a per-CPU list",
        &[Linux(linux::huge_page_waits), Steps(steps::huge_page_waits)],
    ),
    entry(
        "4.2-j",
        "isolated blocks enlarge the budget of a pass",
        &[Steps(steps::isolated_blocks_enlarge_the_budget)],
    ),
    entry(
        "4.2-k",
        "the meta bit is cleared after the scan",
        &[Threads("section-bitmap-cleared-after-scan")],
    ),
    entry(
        "4.2-l",
        "the bit is set before the block is on its list",
        &[Threads("zone-bitmap-marked-before-free")],
    ),
    entry(
        "4.2-m",
        "bitmaps are swapped without a grace period",
        &[Threads("zone-bitmap-rcu-no-grace-period")],
    ),
    entry(
        "split",
        "a block not yet reported is split, and its rest goes to a list already walked",
        &[Threads("reported-flag-split-behind-the-walk")],
    ),
    entry(
        "forgets",
        "before 6.17 isolation forgets what the pageblock was",
        &[Threads("isolation-forgets-unmovable")],
    ),
];

const NEWEST: &str = "newest";
const STABLE: &str = "stable";

/// See the module.
pub(super) struct Part4;

impl Experiment for Part4 {
    fn name(&self) -> &'static str {
        "part4"
    }

    fn about(&self) -> &'static str {
        "Bugs and hypotheses of the reference's part 4 that concern reporting, each with a verdict: \
         shown, not shown, or not testable here. In real Linux where that can show it, and in the \
         model; every schedule that a scheduler reaches is `cargo explore`'s"
    }

    fn parameters(&self) -> &'static [Parameter] {
        const PARAMETERS: &[Parameter] = &[
            Parameter {
                name: "runs",
                what: "runs of the model with real threads, a seed each, until it shows",
                kind: Kind::Number(1, 10_000_000),
                quick: "3000",
                full: "200000",
            },
            Parameter {
                name: "kernels",
                what: "those of Linux that are tried: what was fetched, and Debian's stable one",
                kind: Kind::Choices(&[NEWEST, STABLE]),
                quick: NEWEST,
                full: "newest,stable",
            },
        ];
        PARAMETERS
    }

    fn repeats(&self, case: &str) -> Repeats {
        let steps_only = |entry: &Entry| entry.how.iter().all(|how| matches!(how, Steps(_)));
        match ENTRIES.iter().find(|entry| entry.id == case) {
            Some(entry) if steps_only(entry) => Repeats::Exactly,
            _ => Repeats::ButForTheGuest,
        }
    }

    fn cases(&self, _: &Settings) -> Vec<String> {
        ENTRIES.iter().map(|entry| entry.id.to_owned()).collect()
    }

    fn run(&self, case: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let entry = ENTRIES.iter().find(|entry| entry.id == case).context("no such entry")?;
        let mut findings = Findings::default();
        findings.note(entry.what);
        let mut all = Vec::new();
        for how in entry.how {
            crate::progress::check()?;
            all.extend(tried(how, settings, context, &mut findings)?);
        }
        findings.verdict = verdict(all);
        Ok(findings)
    }
}

/// What is said of all that was tried: the verdict of the one that says most.
fn verdict(all: Vec<Seen>) -> Option<Verdict> {
    let says = |kind: VerdictKind| match kind {
        VerdictKind::NotTestable => 0,
        VerdictKind::NotShown => 1,
        VerdictKind::Survived => 2,
        VerdictKind::AsDocumented => 3,
        VerdictKind::Shown => 4,
        VerdictKind::Lost => 5,
    };
    let kind = all.iter().map(|(kind, _)| *kind).max_by_key(|kind| says(*kind))?;
    let text = all.iter().map(|(of, text)| match of {
        of if *of == kind => text.clone(),
        VerdictKind::NotShown => format!("not shown: {text}"),
        VerdictKind::NotTestable => format!("not tested: {text}"),
        _ => text.clone(),
    });
    Some(Verdict { kind, text: text.collect::<Vec<_>>().join("; ") })
}

/// Tries one way; in Linux once in each kernel.
fn tried(
    how: &How,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<Vec<Seen>> {
    let toolboxes = || -> Result<Result<Vec<Toolbox>, Seen>> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => toolbox,
            Err(why) => return Ok(Err((VerdictKind::NotTestable, why))),
        };
        let of = |kernel: &&'static str| -> Result<Toolbox> {
            let mut toolbox = toolbox.clone();
            if *kernel == STABLE {
                toolbox.kernel = qemu::stable_kernel()?;
            }
            Ok(toolbox)
        };
        settings.choices("kernels").iter().map(of).collect::<Result<_>>().map(Ok)
    };
    let mut in_each = |run: &mut dyn FnMut(&Toolbox, &mut Findings) -> Result<Seen>| {
        Ok(match toolboxes()? {
            Ok(all) => all.iter().map(|one| run(one, findings)).collect::<Result<Vec<_>>>()?,
            Err(why) => vec![why],
        })
    };
    Ok(vec![match how {
        Threads(name) => model(name, settings.number("runs"), context)?,
        Steps(run) => {
            let (kind, text) = run()?;
            (kind, format!("the model, step by step: {text}"))
        }
        Linux(run) => return in_each(&mut |toolbox, findings| run(toolbox, findings)),
        How::Fault(kind) => {
            let toolbox = toolbox()?.ok();
            devices::fault(*kind, &context.daemon()?, toolbox.as_ref())?
        }
        Daemon(run) => run(&context.daemon()?)?,
        DaemonLinux(run) => {
            let daemon = context.daemon()?;
            return in_each(&mut |toolbox, _| run(toolbox, &daemon));
        }
        Not(why) => (VerdictKind::NotTestable, (*why).to_owned()),
    }])
}

/// Runs something that fails where an assertion of the model does.
fn assertion<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| "an assertion of the model failed".to_owned())
}

/// Runs a configuration of the model until it goes wrong.
fn model(name: &str, runs: u64, context: &Context<'_>) -> Result<(VerdictKind, String)> {
    let model = explore::model("reporting").context("no such model")?;
    let case = model.case(name).context("no such configuration")?;
    let seeds = context.seed..context.seed.saturating_add(runs);
    for (done, seed) in (0..).zip(seeds) {
        context.progress.at(done, runs);
        crate::progress::check()?;
        let violation = match assertion(|| case.run(seed)) {
            Ok(Ok(())) => continue,
            Ok(Err(violation)) => violation.to_string(),
            Err(failed) => failed,
        };
        let text = format!("the model with real threads shows it in run {}: {violation}", done + 1);
        return Ok((VerdictKind::Shown, text));
    }
    let text = format!(
        "not in {runs} runs of the model with real threads; a scheduler finds it: cargo explore \
         --configuration {name}"
    );
    Ok((VerdictKind::NotShown, text))
}
