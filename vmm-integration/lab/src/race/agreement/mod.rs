// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the model and real Linux have in common, measured in both by the same device.
//!
//! Where the two differ, a case removes the cause in one of them or adds it to the other.

mod linux;
mod model;

use std::time::{Duration, Instant};

use anyhow::Result;
use guest_driver::reporting::TrackerKind;
use vmm_integration::measure::host::wait_until;

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::faults::chain::Chain;
use crate::faults::device::FaultyDevice;
use crate::guest::toolbox;
use crate::parameters::parameters;
use crate::parameters::takes::Bytes;
use crate::race::zoneinfo::CpuLists;
use crate::store::{Findings, VerdictKind};

const MIB: u64 = 1 << 20;
/// CPUs of the guest.
const CPUS: u32 = 2;
/// A pass is made every two seconds; chains of one pass come within a fraction of that, an emulated
/// guest's too.
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

/// A guest, and what becomes of the pages on its per-CPU lists once memory is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Guest {
    /// The model.
    Model,
    /// The model with lists that are emptied at once.
    ModelDrained,
    /// That model, where others use a half of some of the largest blocks.
    ModelOccupied,
    /// Linux.
    Linux,
    /// Linux with lists of less than a block.
    LinuxShortLists,
    /// Linux without huge pages, whose watermarks are lower: the lists keep less, and return the rest
    /// in parts, one each second.
    LinuxLowWatermarks,
    /// That Linux, which does not update its statistics any more: the lists return nothing.
    LinuxNoDecay,
    /// The model, with the tracker `section-bitmap` and isolation.
    ModelIsolating,
    /// Linux with the module that reports by isolation, and the same tracker.
    LinuxIsolating,
    /// The isolating model with occupied halves and lists that are emptied.
    ModelIsolatingOccupied,
    /// The isolating Linux with lists of less than a block.
    LinuxIsolatingShortLists,
    /// The isolating model with the tracker `section-bit`.
    ModelSectionBit,
    /// The isolating Linux with the tracker `section-bit`.
    LinuxSectionBit,
}

impl Guest {
    /// Whether it is the model.
    fn is_model(self) -> bool {
        match self {
            Self::Model
            | Self::ModelDrained
            | Self::ModelOccupied
            | Self::ModelIsolating
            | Self::ModelIsolatingOccupied
            | Self::ModelSectionBit => true,
            Self::Linux
            | Self::LinuxShortLists
            | Self::LinuxLowWatermarks
            | Self::LinuxNoDecay
            | Self::LinuxIsolating
            | Self::LinuxIsolatingShortLists
            | Self::LinuxSectionBit => false,
        }
    }

    /// The tracker, if it reports by isolation.
    fn isolating(self) -> Option<TrackerKind> {
        match self {
            Self::ModelIsolating
            | Self::ModelIsolatingOccupied
            | Self::LinuxIsolating
            | Self::LinuxIsolatingShortLists => Some(TrackerKind::SectionBitmap),
            Self::ModelSectionBit | Self::LinuxSectionBit => Some(TrackerKind::SectionBit),
            _ => None,
        }
    }
}

impl Case for Guest {}

impl Experiment for Agreement {
    type Parameters = Settings;
    type Case = Guest;

    fn name(&self) -> &'static str {
        "agreement"
    }

    fn about(&self) -> &'static str {
        "Compares the model (tracker reported-flag, pulling) with real Linux, and both again where they \
         isolate (trackers section-bitmap and section-bit; in Linux by the module): passes until freed memory is reported, \
         bytes in a pass, sizes of chunks, outcomes of offlining, watermarks and per-CPU lists. The other \
         cases change one thing in either, for each difference the one that causes it."
    }

    fn repeats(&self, _: &Guest) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<Guest> {
        use Guest::{Linux, LinuxIsolating, LinuxIsolatingShortLists, LinuxLowWatermarks};
        use Guest::{LinuxNoDecay, LinuxSectionBit, LinuxShortLists, ModelSectionBit};
        use Guest::{Model, ModelDrained, ModelIsolating, ModelIsolatingOccupied, ModelOccupied};
        let changed =
            [ModelDrained, LinuxShortLists, ModelOccupied, LinuxLowWatermarks, LinuxNoDecay];
        let isolating = [ModelIsolatingOccupied, LinuxIsolatingShortLists];
        let all = [Model, Linux, ModelIsolating, LinuxIsolating].into_iter().chain(changed);
        all.chain(isolating).chain([ModelSectionBit, LinuxSectionBit]).collect()
    }

    fn run(&self, case: &Guest, settings: &Settings, _: &Context<'_>) -> Result<Findings> {
        let freed = settings.freed;
        let memory = freed + 384 * MIB;
        if case.is_model() {
            return model::run(memory, freed, *case);
        }
        match toolbox()? {
            Ok(toolbox) => linux::run(&toolbox, memory, freed, *case),
            Err(why) => Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        }
    }
}

/// The chains until no more have come for [`QUIET`].
fn rest(device: &FaultyDevice) -> Result<Vec<Chain>> {
    let mut chains = Vec::new();
    let mut last = Instant::now();
    wait_until(Duration::from_secs(300), Duration::from_millis(50), || {
        let more = device.take_chains();
        if !more.is_empty() {
            last = Instant::now();
        }
        chains.extend(more);
        if last.elapsed() > QUIET { Ok(()) } else { Err("it still reports".to_owned()) }
    })?;
    Ok(chains)
}

/// The passes that have made these chains: the device sees no pass, only a pause.
fn passes(chains: Vec<Chain>) -> Vec<Vec<Chain>> {
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
    passes
}

/// Pages on the per-CPU lists, and sizes of the zone with nearly all of the memory, in pages.
struct Sizes {
    managed: u64,
    watermarks: [u64; 3],
    lists: CpuLists,
}

impl Sizes {
    /// Adds them, the names beginning with `prefix`.
    fn figures(&self, prefix: &str, of: &str, findings: &mut Findings) {
        let &Self { managed, watermarks: [min, low, high], lists } = self;
        let mut size = |name: &str, pages: u64, what: &str| {
            findings.count(&format!("{prefix}{name}"), pages, "pages", &format!("{what}{of}"));
        };
        size("managed", managed, "managed pages of the largest zone");
        size("watermark-min", min, "its min watermark");
        size("watermark-low", low, "its low watermark");
        size("watermark-high", high, "its high watermark");
        size("pcp-high-min", lists.high_min, "the least that a CPU's lists may hold when full");
        size("pcp-high-max", lists.high_max, "the most that a CPU's lists may hold");
        size("pcp-batch", lists.batch, "what a CPU's list moves at once");
    }
}

/// Free blocks whose other half is in use.
fn halves_figure(findings: &mut Findings, halves: u64) {
    let what = "free blocks of 2 MiB whose other half was in use, before memory was used";
    findings.count("halves-before", halves, "", what);
}

/// How many pages the lists of all CPUs have.
fn lists_figure(findings: &mut Findings, when: &str, what: &str, pages: u64) {
    let mib = real(pages) * 4096.0 / real(MIB);
    findings.figure(&format!("on-lists-{when}"), mib, "MiB", &format!("on per-CPU lists {what}"));
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
    let late = bytes.iter().skip(usize::try_from(most_of_it).unwrap_or(0)).sum::<u64>();
    findings.count("late", late / MIB, "MiB", "reported by the passes after those");
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
