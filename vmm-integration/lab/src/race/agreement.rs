// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the model and real Linux have in common, measured in both by the same device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use guest_agent::race::MemoryBlock;
use guest_driver::page_alloc::{AllocRequest, Mm, MovePages, OfflineError, Pfn, ZoneId, ZoneType};
use guest_driver::reporting::{Config, Holding, Reporter, TrackerKind};

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::faults::device::{Chain, FaultyDevice};
use crate::faults::plan::FaultPlan;
use crate::guest::{GuestKind, toolbox};
use crate::parameters::parameters;
use crate::parameters::takes::Bytes;
use crate::store::{Findings, VerdictKind};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelVm};
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
/// Linux makes a pass every two seconds; chains of one pass come within a fraction of that, an
/// emulated guest's too.
const PASSES_APART: Duration = Duration::from_millis(1200);
const QUIET: Duration = Duration::from_secs(8);

/// See the module.
pub(super) struct Agreement;

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        freed: u64, Bytes(64 << 20, 16 << 30), 640 << 20, 640 << 20, "memory that is used and freed";
    }
}

impl Case for GuestKind {}

impl Experiment for Agreement {
    type Parameters = Settings;
    type Case = GuestKind;

    fn name(&self) -> &'static str {
        "agreement"
    }

    fn about(&self) -> &'static str {
        "Compares the model (tracker reported-flag, pulling) with real Linux: passes until freed memory \
         is reported, bytes in a pass, sizes of chunks, outcomes of offlining."
    }

    fn repeats(&self, _: &GuestKind) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<GuestKind> {
        vec![GuestKind::Model, GuestKind::Linux]
    }

    fn run(&self, case: &GuestKind, settings: &Settings, _: &Context<'_>) -> Result<Findings> {
        let freed = settings.freed;
        let memory = freed + 384 * MIB;
        match case {
            GuestKind::Model => model(memory, freed),
            GuestKind::Linux => match toolbox()? {
                Ok(toolbox) => linux(&toolbox, memory, freed),
                Err(why) => Ok(Findings::verdict(VerdictKind::NotTestable, why)),
            },
        }
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn real(number: u64) -> f64 {
    number as f64
}

/// Figures of passes, each given by its chains.
fn figures(passes: &[Vec<Chain>]) -> Findings {
    let mut findings = Findings::default();
    let bytes: Vec<u64> =
        passes.iter().map(|pass| pass.iter().map(|chain| chain.bytes).sum()).collect();
    let chains: Vec<&Chain> = passes.iter().flatten().collect();
    findings.count("passes", passes.len() as u64, "", "until nothing more was reported");
    let all: u64 = bytes.iter().sum();
    let mut sum = 0;
    let most_of_it = bytes.iter().position(|bytes| {
        sum += bytes;
        sum >= all / 20 * 19
    });
    let most_of_it = most_of_it.map_or(0, |pass| pass as u64 + 1);
    findings.count("passes-for-95-percent", most_of_it, "", "until nearly all was reported");
    let largest = bytes.iter().copied().max().unwrap_or(0);
    findings.count("largest-pass", largest / MIB, "MiB", "reported in the largest pass");
    findings.count("reported", all / MIB, "MiB", "reported in all passes");
    let most = chains.iter().map(|chain| chain.sizes.len() as u64).max().unwrap_or(0);
    findings.count("chunks-a-chain", most, "", "the most chunks in a report");
    for order in [9_u8, 10] {
        let size = 4096_u64 << order;
        let of = |chain: &&Chain| chain.sizes.iter().filter(|bytes| **bytes == size).count() as u64;
        let count: u64 = chains.iter().map(of).sum();
        let what = format!("chunks of {} MiB", size / MIB);
        findings.count(&format!("chunks-order-{order}"), count, "", &what);
    }
    let points = (1_u32..).zip(&bytes).map(|(pass, bytes)| (f64::from(pass), real(bytes / MIB)));
    findings.series("passes", ("pass", "MiB"), "reported in each pass", points.collect());
    findings
}

fn offline_figures(findings: &mut Findings, free: bool, unmovable: &str) {
    findings.figure("offline-free", f64::from(u8::from(free)), "", "a free block goes offline: 1");
    findings.note(format!("a block with an unmovable page: {unmovable}"));
    findings.figure(
        "offline-unmovable-busy",
        f64::from(u8::from(unmovable == "EBUSY")),
        "",
        "a block with an unmovable page says EBUSY: 1",
    );
}

/// Nothing can be moved: what is in use is unmovable.
struct Nobody;

impl MovePages for Nobody {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

fn model(memory: u64, freed: u64) -> Result<Findings> {
    let device = FaultyDevice::start(FaultPlan::default())?;
    let mut guest = GuestMemory::flat(memory, 2);
    // As in a guest of Linux without options: unmovable pages may lie anywhere.
    guest.layout.zones.iter_mut().for_each(|zone| zone.kind = ZoneType::Normal);
    let mut vm = ModelVm::start(&device.socket(), ModelConfig::new(guest))?;
    let mut queue = vm.take_reporting()?;
    let config =
        Config { tracker: TrackerKind::ReportedFlag, holding: Holding::Pull, ..Config::default() };
    let mm = Arc::clone(vm.mm());
    let mut reporter = Reporter::new(Arc::clone(&mm), config)?;
    while reporter.has_work() {
        reporter.pass(&mut queue);
    }
    // Base pages, as an agent's allocation is where there are no transparent huge pages.
    let mut pages = Vec::new();
    for _ in 0..freed / 4096 {
        pages.push(mm.alloc(0, AllocRequest::movable(0))?);
    }
    device.take_chains();
    pages.drain(..).for_each(|page| mm.free(0, page));
    mm.drain_all(ZoneId(0));
    let mut passes = Vec::new();
    while reporter.has_work() {
        reporter.pass(&mut queue);
        let chains = device.take_chains();
        if !chains.is_empty() {
            passes.push(chains);
        }
    }
    let mut findings = figures(&passes);
    let last = usize::try_from(memory / (128 * MIB))? - 1;
    let free = mm.offline_block(last, &Nobody, &|| false);
    let mut request = AllocRequest::movable(0);
    request.migratetype = guest_driver::page_alloc::MigrateType::Unmovable;
    let page = mm.alloc(0, request)?;
    let block = usize::try_from(page.address() / (128 * MIB))?;
    let unmovable = match mm.offline_block(block, &Nobody, &|| false) {
        Ok(()) => "it went offline",
        Err(OfflineError::Busy) => "EBUSY",
        Err(OfflineError::Invalid) => "EINVAL",
        Err(OfflineError::Interrupted) => "EINTR",
    };
    offline_figures(&mut findings, free.is_ok(), unmovable);
    Ok(findings)
}

fn linux(
    toolbox: &vmm_integration::vmm::qemu::Toolbox,
    memory: u64,
    freed: u64,
) -> Result<Findings> {
    let device = FaultyDevice::start(FaultPlan::default())?;
    let config = GuestConfig {
        memory_bytes: memory,
        balloon: Balloon::VhostUser { socket: device.socket() },
        kernel_args: vec!["transparent_hugepage=never".to_owned()],
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(toolbox, config)?;
    guest.load_balloon_driver("")?;
    let agent = guest.agent();
    let rest = |chains: &mut Vec<Chain>| -> Result<()> {
        let mut last = Instant::now();
        wait_until(Duration::from_secs(300), Duration::from_millis(50), || {
            let more = device.take_chains();
            if !more.is_empty() {
                last = Instant::now();
            }
            chains.extend(more);
            if last.elapsed() > QUIET { Ok(()) } else { Err("it still reports".to_owned()) }
        })
    };
    let mut chains = Vec::new();
    rest(&mut chains)?;
    agent.alloc(1, freed, 1)?;
    rest(&mut chains)?;
    chains.clear();
    agent.free(1)?;
    rest(&mut chains)?;
    ensure!(!chains.is_empty(), "Linux reported nothing");
    let mut passes: Vec<Vec<Chain>> = Vec::new();
    for chain in chains {
        let near = |pass: &&mut Vec<Chain>| {
            pass.last().is_some_and(|last: &Chain| chain.at - last.at < PASSES_APART)
        };
        match passes.last_mut().filter(near) {
            Some(pass) => pass.push(chain),
            None => passes.push(vec![chain]),
        }
    }
    let mut findings = figures(&passes);
    let state = |block: u32, state: &str| {
        let path = format!("/sys/devices/system/memory/memory{block}/state");
        agent.write_file(&path, state)
    };
    let blocks = agent.memory_blocks()?;
    // Of those that lie in one zone the first to be refused holds the kernel's own pages.
    let one_zone = |block: &&MemoryBlock| block.zones.first().is_some_and(|zone| zone != "none");
    let busy = blocks.blocks.iter().filter(one_zone).find_map(|block| {
        let refused = state(block.id, "offline").err();
        if refused.is_none() {
            // It is not missed where it does not come back: the next is tried.
            let _ = state(block.id, "online");
        }
        refused
    });
    let errno = busy.as_ref().and_then(|error| error.downcast_ref::<guest_agent::Failure>());
    let errno = errno.and_then(|failure| failure.errno.clone());
    let free = blocks.blocks.iter().rev().any(|block| {
        let gone = state(block.id, "offline").is_ok();
        gone && state(block.id, "online").is_ok()
    });
    offline_figures(&mut findings, free, errno.as_deref().unwrap_or("it went offline"));
    findings.note(format!("Linux {}", guest.hello().kernel_release));
    Ok(findings)
}
