// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory blocks go offline and online in a real Linux guest while it reports its free pages, uses
//! memory, allocates huge pages and reconfigures its reporting.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::race::{HugePages, RacePlan, RaceReport};
use guest_agent::{Command, Failure};

use crate::progress;
use vmm_integration::linux_guest::isolation;
use vmm_integration::linux_guest::modules::ISOLATION_REPORTING;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

const MIB: u64 = 1 << 20;
/// How often the guest is asked how it stands. Nobody waits for the answer but the watchdog.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the threads may take to end, once the cycles are done.
const END: Duration = Duration::from_secs(120);
/// How long a step of the preparations may take.
const STEP: Duration = Duration::from_secs(60);
/// The allocation that stays, and what is in it.
const KEPT: u32 = 200;
const KEPT_GENERATION: u16 = 1;
/// How often it is looked at, in milliseconds.
const KEPT_EVERY_MS: u64 = 5000;
/// Others, that fill the blocks which are not cycled.
const FILLED: u32 = 201;
/// Boots until one is clean.
const BOOTS: u32 = 3;
/// Lines of the serial console in an error.
const TAIL_LINES: usize = 120;

/// What takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxRace {
    /// Memory of the guest in bytes.
    pub memory_bytes: u64,
    /// How much of it lies in `ZONE_MOVABLE`, so that all of that can be taken offline.
    pub movable_bytes: u64,
    /// CPUs of the guest.
    pub cpus: u32,
    /// Of every choice that the guest's threads make.
    pub seed: u64,
    /// Cycles to make, an offline and an online each.
    pub cycles: u64,
    /// Memory that is in use from the beginning to the end, in bytes.
    pub kept_bytes: u64,
    /// Threads that use memory in turns, and how much each has at most, in bytes.
    pub users: (u32, u64),
    /// Whether pools of huge pages, gigantic ones among them, are filled and emptied.
    pub huge_pages: bool,
    /// Whether `page_reporting_order` is changed, and `virtio_balloon` unloaded and loaded.
    pub reconfigure: bool,
    /// Whether the guest reports: `virtio_balloon` is loaded.
    pub reporting: bool,
    /// Whether the module that reports by isolation does so in place of the kernel; its parameters. It
    /// is then what is unloaded and loaded.
    pub isolation: Option<String>,
    /// Pause between two reloads, and between two changes of the order, in milliseconds.
    pub pause_ms: u64,
    /// A single operation that takes longer than this is a hang.
    pub hang: Duration,
}

impl LinuxRace {
    /// Everything at the same time, for so many cycles.
    pub fn new(seed: u64, cycles: u64) -> Self {
        Self {
            memory_bytes: 2048 * MIB,
            movable_bytes: 1536 * MIB,
            cpus: 2,
            seed,
            cycles,
            kept_bytes: 2 * MIB,
            users: (2, 4 * MIB),
            huge_pages: true,
            reconfigure: true,
            reporting: true,
            isolation: None,
            pause_ms: 5000,
            hang: Duration::from_secs(60),
        }
    }

    /// The guest that it runs in, whose balloon is at `socket`; it has none if it does not report.
    pub fn guest(&self, socket: &Path) -> GuestConfig {
        let ours = Balloon::VhostUser { socket: socket.to_owned() };
        GuestConfig {
            memory_bytes: self.memory_bytes,
            cpus: self.cpus,
            balloon: if self.reporting { ours } else { Balloon::None },
            kernel_args: vec![format!("movablecore={}M", self.movable_bytes / MIB)],
            own_modules: self.isolation.is_some(),
            ..GuestConfig::default()
        }
    }

    fn plan(&self, blocks: Vec<u32>) -> RacePlan {
        let huge_pages = [
            HugePages { page_kib: 2048, count: 8 },
            // Only to be had with alloc_contig_pages, of blocks that come and go.
            HugePages { page_kib: 1 << 20, count: 1 },
        ];
        RacePlan {
            seed: self.seed,
            blocks,
            online_as: "online_movable".to_owned(),
            cycles: self.cycles,
            cyclers: 1,
            users: self.users.0,
            user_bytes: self.users.1,
            huge_pages: if self.huge_pages { huge_pages.into() } else { Vec::new() },
            reporting_orders: if self.reconfigure { vec![9, 10, 8, 9] } else { Vec::new() },
            reload: (self.reconfigure && self.reporting).then(|| match &self.isolation {
                Some(_) => ISOLATION_REPORTING.to_owned(),
                None => "virtio_balloon".to_owned(),
            }),
            reload_params: self.isolation.clone().unwrap_or_default(),
            // Linux reports two seconds after a free: a driver that is never there that long
            // reports nothing.
            pause_ms: self.pause_ms,
            rest_ms: 300,
            trace_reports: self.reporting,
        }
    }

    /// Runs it against the daemon that listens at `socket`. `look` hears how it stands, and ends it
    /// early with `false`.
    ///
    /// # Errors
    /// Where the guest cannot be had, memory in it is damaged, its kernel complains, or an operation
    /// in it hangs; then with what the guest's tasks wait for and the end of its serial console.
    pub fn run(
        &self,
        toolbox: &Toolbox,
        socket: &Path,
        look: &mut dyn FnMut(&RaceReport) -> bool,
    ) -> Result<Raced> {
        let guest = self.boot(toolbox, socket)?;
        self.run_in(&guest, look).with_context(|| evidence(&guest))
    }

    /// Boots the guest. A debug kernel sometimes reports a fault in its first milliseconds, when an
    /// interrupt comes while the CPU's features are read: KASAN then takes good addresses for wild, and
    /// lockdep is off from then on. So it boots another.
    fn boot(&self, toolbox: &Toolbox, socket: &Path) -> Result<LinuxGuest> {
        for _ in 0..BOOTS {
            let guest = LinuxGuest::boot(toolbox, self.guest(socket))?;
            match complaint(&guest)? {
                Some(complaint) => progress::say(&format!("while it booted: {complaint}")),
                None => return Ok(guest),
            }
        }
        bail!("the guest's kernel complained in each of {BOOTS} boots")
    }

    /// The same in a guest that has been booted with [`LinuxRace::guest`].
    ///
    /// # Errors
    /// See [`LinuxRace::run`].
    pub fn run_in(
        &self,
        guest: &LinuxGuest,
        look: &mut dyn FnMut(&RaceReport) -> bool,
    ) -> Result<Raced> {
        if self.reporting {
            guest.load_balloon_driver("")?;
        }
        let agent = guest.agent();
        let blocks = agent.memory_blocks()?;
        let movable = blocks.movable();
        ensure!(!movable.is_empty(), "no memory block lies in ZONE_MOVABLE: {blocks:?}");
        let (cycled, left_alone) = removable(guest, &movable)?;
        ensure!(!cycled.is_empty(), "no memory block can be taken offline: {left_alone:?}");
        let filled = fill_up_to(guest, &cycled)?;
        allocate(guest, KEPT, self.kept_bytes)?;
        // Not before: a block that is isolated for a report does not go offline at once.
        if let Some(params) = &self.isolation {
            isolation::load(agent, params)?;
        }
        let plan = self.plan(cycled.clone());
        agent.start_race(&plan)?;
        let mut report = agent.race(false)?;
        let mut next_look_ms = 0;
        let mut looks = 0;
        while report.running {
            thread::sleep(LOOK_EVERY);
            report = agent.race(false)?;
            self.no_hang(&report)?;
            looks += 1;
            if report.elapsed_ms >= next_look_ms {
                agent.expect_intact(KEPT)?;
                next_look_ms = report.elapsed_ms + KEPT_EVERY_MS;
            }
            if !look(&report) {
                agent.race(true)?;
                break;
            }
            // The cycles are done, or it has ended by itself: the others are told.
            if report.cycles() >= self.cycles {
                break;
            }
        }
        let ending = Instant::now();
        while report.running {
            ensure!(ending.elapsed() < END, "the race does not end: {:?}", report.under_way);
            thread::sleep(LOOK_EVERY);
            report = agent.race(true)?;
            self.no_hang(&report)?;
        }
        if let Some(first) = &report.first {
            bail!("memory in use was damaged, {} words: {first}", report.mismatches);
        }
        agent.expect_intact(KEPT)?;
        for id in filled {
            agent.expect_intact(id)?;
        }
        let after = agent.memory_blocks()?.movable();
        ensure!(after == movable, "blocks {movable:?} were movable, and now {after:?}");
        if let Some(complaint) = complaint(guest)? {
            bail!("{complaint}");
        }
        Ok(Raced {
            kernel: guest.hello().kernel_release.clone(),
            blocks: cycled,
            left_alone,
            block_bytes: blocks.block_bytes,
            looks,
            report,
        })
    }

    fn no_hang(&self, report: &RaceReport) -> Result<()> {
        let hang = u64::try_from(self.hang.as_millis()).unwrap_or(u64::MAX);
        let stuck = report.under_way.iter().find(|operation| operation.ms > hang);
        match stuck {
            Some(stuck) => bail!("a hang: {} for {} ms", stuck.what, stuck.ms),
            None => Ok(()),
        }
    }
}

fn allocate(guest: &LinuxGuest, id: u32, bytes: u64) -> Result<()> {
    let command = Command::Alloc { id, bytes, generation: KEPT_GENERATION };
    guest.agent().call(command, STEP).map(drop)
}

pub(super) fn set_block(guest: &LinuxGuest, block: u32, state: &str) -> Result<()> {
    let path = format!("/sys/devices/system/memory/memory{block}/state");
    guest.agent().call(Command::WriteFile { path, text: state.to_owned() }, STEP).map(drop)
}

/// Uses memory until some of it lies in one of `blocks`, and returns the allocations.
///
/// The kernel uses a block that has come online last: without this none that is cycled would ever
/// be in use. Not much more than necessary, since an emulated guest takes some 50 us to move a page
/// out of the way.
fn fill_up_to(guest: &LinuxGuest, blocks: &[u32]) -> Result<Vec<u32>> {
    let mut filled = Vec::new();
    for step in [64 * MIB, 8 * MIB, 2 * MIB] {
        loop {
            let id = FILLED + u32::try_from(filled.len())?;
            allocate(guest, id, step)?;
            filled.push(id);
            // In the first round what lies in these blocks moves to wherever else there is room;
            // what moves in the second has nowhere else to go.
            let mut before = 0;
            for _ in 0..2 {
                before = moved_pages(guest)?;
                for &block in blocks {
                    set_block(guest, block, "offline")?;
                    set_block(guest, block, "online_movable")?;
                }
            }
            if moved_pages(guest)? == before {
                continue;
            }
            if step > 2 * MIB {
                guest.agent().free(id)?;
                filled.pop();
            }
            break;
        }
    }
    Ok(filled)
}

fn moved_pages(guest: &LinuxGuest) -> Result<u64> {
    let vmstat = guest.agent().read_file("/proc/vmstat")?;
    let line = vmstat.lines().find_map(|line| line.strip_prefix("pgmigrate_success "));
    Ok(line.context("/proc/vmstat does not count moved pages")?.parse()?)
}

/// Blocks that go offline, and those that do not with the error's name.
type Tried = (Vec<u32>, Vec<(u32, String)>);

/// The `blocks` that go offline in a quiet guest, and the errors of the others:
/// even in `ZONE_MOVABLE` the kernel may have reserved pages, or a hole at the end of memory.
fn removable(guest: &LinuxGuest, blocks: &[u32]) -> Result<Tried> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for &block in blocks {
        match set_block(guest, block, "offline") {
            Ok(()) => {
                set_block(guest, block, "online_movable")?;
                good.push(block);
            }
            Err(error) => {
                let failure = error.downcast_ref::<Failure>().and_then(|f| f.errno.clone());
                bad.push((block, failure.ok_or(error)?));
            }
        }
    }
    Ok((good, bad))
}

/// What the guest's kernel says is wrong with it, if anything.
pub(super) fn complaint(guest: &LinuxGuest) -> Result<Option<String>> {
    let splats = guest.splats()?;
    let others = splats.len().saturating_sub(1);
    let said = splats.first();
    Ok(said.map(|line| format!("the guest's kernel said {line:?}, and {others} lines like it")))
}

/// What came of a race that nothing was wrong with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raced {
    /// As `uname -r` prints it.
    pub kernel: String,
    /// The memory blocks that were cycled.
    pub blocks: Vec<u32>,
    /// Those of `ZONE_MOVABLE` that cannot be taken offline even in a quiet guest, and why.
    pub left_alone: Vec<(u32, String)>,
    /// Size of each in bytes.
    pub block_bytes: u64,
    /// How often it was looked whether an operation hangs, while the blocks were cycled.
    pub looks: u64,
    /// How it stood at its end.
    pub report: RaceReport,
}

impl Raced {
    /// Cycles a second.
    #[allow(clippy::cast_precision_loss)] // a figure for people
    pub fn cycles_per_second(&self) -> f64 {
        self.report.cycles() as f64 * 1000.0 / self.report.elapsed_ms.max(1) as f64
    }
}

impl std::fmt::Display for Raced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel, blocks, left_alone, block_bytes, report, .. } = self;
        writeln!(
            f,
            "Linux {kernel}: {} cycles of {} blocks of {} MiB in {:.1} s, {:.0} a second",
            report.cycles(),
            blocks.len(),
            block_bytes / MIB,
            std::time::Duration::from_millis(report.elapsed_ms).as_secs_f64(),
            self.cycles_per_second()
        )?;
        for (block, why) in left_alone {
            writeln!(f, "  memory{block} was skipped: {why}, in the quiet guest as well")?;
        }
        for (name, operation) in &report.operations {
            writeln!(f, "  {name:<16} {operation}")?;
        }
        write!(
            f,
            "  {} MiB compared, {} words wrong; {} pages moved out of the way",
            report.verified_bytes / MIB,
            report.mismatches,
            report.migrated_pages
        )
    }
}

/// What the guest can tell about what is wrong with it.
fn evidence(guest: &LinuxGuest) -> String {
    let mut text = String::from("in the guest");
    for task in guest.agent().tasks('D').unwrap_or_default() {
        text += &format!("\n{} ({}) waits in {}", task.name, task.pid, task.stack.join(" < "));
    }
    let serial = guest.serial().unwrap_or_default();
    let lines: Vec<&str> = serial.lines().collect();
    text += "\nend of its serial console:\n";
    text += &lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    text
}
