//! The bugs, races and hypotheses of the reference's part 4, by their numbers there: each with what
//! can be tried here, and what cannot.
//!
//! What the model shows is a finding about the model. Nothing here is a bug of Linux unless real
//! Linux shows it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result};
use guest_agent::race::RacePlan;
use guest_driver::explore::catalogue;
use guest_driver::explore::scenario;

use super::experiments::toolbox;
use crate::host::wait_until;
use crate::lab::experiment::{Context, Experiment, Repeats};
use crate::lab::faults::device::FaultyDevice;
use crate::lab::faults::plan::{Fault, FaultKind, FaultPlan};
use crate::lab::parameters::{Kind, Parameter, Settings};
use crate::lab::race::linux::LinuxRace;
use crate::lab::store::{Findings, Verdict, VerdictKind};
use crate::qemu::LinuxGuest;

use std::time::Duration;

/// What is tried of an entry.
enum How {
    /// A configuration of the model's catalogue, with real threads.
    Model(&'static str),
    /// An offline and a driver's unload in Linux while an acknowledgement does not come.
    HungBackend,
    /// Something else shows it, which is named.
    Elsewhere(VerdictKind, &'static str),
    /// It cannot be tried here, and why.
    Not(&'static str),
}

/// An entry of part 4.
struct Entry {
    /// Its number there.
    id: &'static str,
    what: &'static str,
    how: How,
}

const fn entry(id: &'static str, what: &'static str, how: How) -> Entry {
    Entry { id, what, how }
}

use How::{Elsewhere, HungBackend, Model, Not};
use VerdictKind::{AsDocumented, NotShown, Survived};

/// Of 4.1 what concerns reporting, all of 4.2. Each of 4.3 is a kind of fault.
const ENTRIES: [Entry; 28] = [
    entry(
        "4.1-1",
        "the worker runs while freeze deletes the queue",
        Not("the guest has no suspend"),
    ),
    entry(
        "4.1-2",
        "a notification is lost and the driver waits for ever",
        Elsewhere(AsDocumented, "fault lost-interrupt, in the model and in Linux"),
    ),
    entry(
        "4.1-3",
        "dense and fixed queue numbers",
        Elsewhere(
            Survived,
            "tests/model_guest.rs has both numberings, tests/real_guest.rs Linux's",
        ),
    ),
    entry(
        "4.1-4",
        "reporting without F_PAGE_POISON in a guest that clears pages",
        Elsewhere(Survived, "tests/real_guest.rs, init_on_free=1"),
    ),
    entry("4.1-5", "pageblocks of 512 MiB are never reported", Not("guests here have 4 KiB pages")),
    entry(
        "4.1-8",
        "page_reporting_order=0 is taken for unset",
        Not("it is a module parameter at boot; the race writes 8 to 10"),
    ),
    entry("4.1-11", "double isolation before 4.17", Model("linux-4.16-double-isolation")),
    entry(
        "4.1-12",
        "a freed page reaches a per-CPU list behind the drain",
        Model("linux-5.8-pcp-race"),
    ),
    entry("4.1-14", "tracker A, marked before the page is on its list", Model("a-unordered")),
    entry("4.1-15", "out of memory because reports hold too much", Model("no-watermark-guard")),
    entry(
        "4.1-17",
        "discarding is inhibited",
        Elsewhere(Survived, "the daemon's own tests of Inhibit"),
    ),
    entry(
        "4.1-19",
        "used length where nothing was written",
        Elsewhere(Survived, "fault used-length"),
    ),
    entry(
        "4.1-21",
        "memory that comes online is reported at once",
        Elsewhere(Survived, "race-linux: blocks come online all the time and are reported"),
    ),
    entry(
        "4.2-a",
        "a pass that stops for want of memory leaves pages unreported",
        Model("e-low-watermark"),
    ),
    entry("4.2-b", "a zone below its watermark consumes the request", Model("e-low-watermark")),
    entry(
        "4.2-c",
        "freed into an isolated block, not reported after the undo",
        Model("e-free-into-isolated"),
    ),
    entry(
        "4.2-c-converse",
        "isolating half of a block reports the other half again",
        Not("duplicates of one block are not told from others yet"),
    ),
    entry("4.2-n", "the reporter's own isolation triggers the next pass", Model("d-self-trigger")),
    entry(
        "4.2-d",
        "merging two reported blocks loses the mark",
        Not("duplicates of one block are not told from others yet"),
    ),
    entry(
        "4.2-e",
        "half of a pulled block is isolated, and it is put back whole",
        Model("pull-isolated-half"),
    ),
    entry("4.2-f", "a backend that hangs makes offlining spin and unloading wait", HungBackend),
    entry(
        "4.2-g",
        "page_reporting_order is changed during a pass",
        Elsewhere(
            NotShown,
            "race-linux changes it all the time: no damage, no complaint of the kernel",
        ),
    ),
    entry(
        "4.2-h",
        "reporting turns unmovable blocks into movable ones",
        Not("needs the guest's pagetypeinfo over hours of use"),
    ),
    entry(
        "4.2-i",
        "a freed huge page waits on a per-CPU list",
        Not("there is no event for a per-CPU list's end in the guest"),
    ),
    entry(
        "4.2-j",
        "isolated blocks enlarge the budget of a pass",
        Not("needs a large isolated range during a pass"),
    ),
    entry("4.2-k", "the meta bit is cleared after the scan", Model("c-meta-cleared-after")),
    entry("4.2-l", "the bit is set before the block is on its list", Model("a-unordered")),
    entry("4.2-m", "bitmaps are swapped without a grace period", Model("b-no-grace-period")),
];

/// See the module.
pub(super) struct Part4;

impl Experiment for Part4 {
    fn name(&self) -> &'static str {
        "part4"
    }

    fn about(&self) -> &'static str {
        "Bugs and hypotheses of the reference's part 4 that concern reporting, each with a verdict: \
         shown, not shown, or not testable here. With real threads in the model; every schedule \
         that a scheduler reaches is `cargo explore`'s"
    }

    fn parameters(&self) -> &'static [Parameter] {
        const PARAMETERS: &[Parameter] = &[Parameter {
            name: "runs",
            what: "runs of the model with real threads, a seed each, until it shows",
            kind: Kind::Number(1, 10_000_000),
            quick: "3000",
            full: "200000",
        }];
        PARAMETERS
    }

    fn repeats(&self, _: &str) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<String> {
        ENTRIES.iter().map(|entry| entry.id.to_owned()).collect()
    }

    fn run(&self, case: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let entry = ENTRIES.iter().find(|entry| entry.id == case).context("no such entry")?;
        let mut findings = Findings::default();
        findings.note(entry.what);
        let (kind, text) = match entry.how {
            How::Model(name) => model(name, settings.number("runs"), context)?,
            How::HungBackend => hung_backend(&mut findings)?,
            How::Elsewhere(kind, text) => (kind, text.to_owned()),
            How::Not(why) => (VerdictKind::NotTestable, why.to_owned()),
        };
        findings.verdict = Some(Verdict { kind, text });
        Ok(findings)
    }
}

/// Runs a configuration of the model until it goes wrong.
fn model(name: &str, runs: u64, context: &Context<'_>) -> Result<(VerdictKind, String)> {
    let configuration = catalogue::by_name(name).context("no such configuration")?;
    let seeds = context.seed..context.seed.saturating_add(runs);
    for (done, seed) in (0..).zip(seeds) {
        context.progress.at(done, runs);
        crate::lab::progress::check()?;
        let run = AssertUnwindSafe(|| scenario::run(&configuration, seed));
        let violation = match catch_unwind(run) {
            Ok(Ok(())) => continue,
            Ok(Err(violation)) => violation.to_string(),
            Err(_) => "an assertion of the model failed".to_owned(),
        };
        let text = format!("the model shows it in run {}: {violation}", done + 1);
        return Ok((VerdictKind::Shown, text));
    }
    let text = format!(
        "not in {runs} runs of the model with real threads; a scheduler finds it: cargo explore \
         --scenario {name}"
    );
    Ok((VerdictKind::NotShown, text))
}

/// Linux with a report under way that is never acknowledged: can its pages go offline, can its
/// driver be unloaded?
fn hung_backend(findings: &mut Findings) -> Result<(VerdictKind, String)> {
    /// Longer than any operation takes in a guest that is well.
    const HANGS: Duration = Duration::from_secs(15);
    let toolbox = match toolbox()? {
        Ok(toolbox) => toolbox,
        Err(why) => return Ok((VerdictKind::NotTestable, why)),
    };
    // By then all that is reported lies in ZONE_MOVABLE, of which there is most.
    const AFTER: u64 = 12;
    let drop = Fault { after: AFTER, times: 0, ..Fault::new(FaultKind::DropAck) };
    let device = FaultyDevice::start(FaultPlan::new(vec![drop])?)?;
    let race = LinuxRace::new(1, 0);
    let guest = LinuxGuest::boot(&toolbox, race.guest(&device.socket()))?;
    guest.load_balloon_driver("")?;
    let agent = guest.agent();
    wait_until(Duration::from_secs(60), Duration::from_millis(50), || {
        if device.served().faults > 0 { Ok(()) } else { Err("nothing is reported".to_owned()) }
    })?;
    agent.start_race(&RacePlan {
        blocks: agent.memory_blocks()?.movable(),
        online_as: "online_movable".to_owned(),
        cyclers: 1,
        reload: Some("virtio_balloon".to_owned()),
        pause_ms: 100,
        ..RacePlan::default()
    })?;
    let hang = u64::try_from(HANGS.as_millis())?;
    let stuck = wait_until(HANGS * 4, Duration::from_millis(200), || {
        let report = agent.race(false).map_err(|error| format!("{error:#}"))?;
        let stuck: Vec<String> =
            report.under_way.iter().filter(|on| on.ms > hang).map(|on| on.what.clone()).collect();
        if stuck.len() == 2 { Ok(stuck) } else { Err(format!("{stuck:?} hang so far")) }
    });
    for task in agent.tasks('D')? {
        findings.note(format!("{} waits in {}", task.name, task.stack.join(" < ")));
    }
    let kernel = &guest.hello().kernel_release;
    Ok(match stuck {
        Ok(stuck) => (
            VerdictKind::Shown,
            format!("Linux {kernel}: {} for {HANGS:?} and on", stuck.join(", ")),
        ),
        Err(error) => (VerdictKind::NotShown, format!("Linux {kernel}: {error:#}")),
    })
}
