// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the host asks of a race in the guest, and what came of it.
//!
//! A race is threads that take memory blocks offline and online, use memory, allocate huge pages
//! and reconfigure reporting, all at the same time, until they have done what was asked or the
//! host stops them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pattern::Mismatch;

/// What is done at the same time. Whatever is left at its default does not take part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RacePlan {
    /// Of every choice that a thread makes. The order in which threads run is the kernel's.
    pub seed: u64,
    /// Memory blocks to take offline and online, by number.
    pub blocks: Vec<u32>,
    /// How a block is brought back: `online`, `online_movable` or `online_kernel`.
    pub online_as: String,
    /// The race is over after so many cycles, an offline and an online each; 0: when stopped.
    pub cycles: u64,
    /// Threads that do so. Each has blocks of its own.
    pub cyclers: u32,
    /// Threads that use memory.
    pub users: u32,
    /// The most that such a thread has in use, in bytes.
    pub user_bytes: u64,
    /// Pools of huge pages to fill and to empty.
    pub huge_pages: Vec<HugePages>,
    /// Values for `page_reporting_order`, one after the other.
    pub reporting_orders: Vec<u8>,
    /// A module to unload and load.
    pub reload: Option<String>,
    /// Its parameters, as for modprobe.
    pub reload_params: String,
    /// Pause between two reloads, and between two changes of the order, in milliseconds.
    pub pause_ms: u64,
    /// Rest of a thread that uses memory or allocates huge pages, after each turn, in milliseconds:
    /// without one they leave the cyclers little of the CPUs.
    pub rest_ms: u64,
    /// Whether the driver's waits for acknowledgements are traced, as [`REPORT`].
    pub trace_reports: bool,
}

/// A pool of huge pages. Pages of more than the largest block are allocated with
/// `alloc_contig_pages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HugePages {
    /// Size of a page in KiB, such as 2048 or 1048576.
    pub page_kib: u64,
    /// How many are asked for.
    pub count: u64,
}

/// How a race stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaceReport {
    /// Whether any thread of it still runs.
    pub running: bool,
    /// Since it began, in milliseconds, by the guest's clock.
    pub elapsed_ms: u64,
    /// By what was tried: [`OFFLINE`], [`ONLINE`] and so on.
    pub operations: BTreeMap<String, Operation>,
    /// Bytes that were compared with what had been written to them.
    pub verified_bytes: u64,
    /// Words among them that differed.
    pub mismatches: u64,
    /// The first of them.
    pub first: Option<Mismatch>,
    /// Pages that the kernel moved out of the way since the race began (`pgmigrate_success`).
    pub migrated_pages: u64,
    /// What has begun and not ended.
    pub under_way: Vec<UnderWay>,
    /// How long offlining took beside reports, once the race has ended.
    pub offlines: Option<Offlines>,
}

impl RaceReport {
    /// What came of `operation`; nothing if it was never tried.
    pub fn operation(&self, operation: &str) -> Operation {
        self.operations.get(operation).cloned().unwrap_or_default()
    }

    /// Blocks that went offline and came back.
    pub fn cycles(&self) -> u64 {
        self.operation(OFFLINE).ok().min(self.operation(ONLINE).ok())
    }
}

/// [`RaceReport::operations`]: a block was taken offline.
pub const OFFLINE: &str = "offline";
/// [`RaceReport::operations`]: a block was brought online.
pub const ONLINE: &str = "online";
/// [`RaceReport::operations`]: memory was mapped, filled, and compared.
pub const USE: &str = "use";
/// [`RaceReport::operations`]: a pool of huge pages was resized.
pub const HUGE_PAGES: &str = "huge-pages";
/// [`RaceReport::operations`]: `page_reporting_order` was written.
pub const REPORTING_ORDER: &str = "reporting-order";
/// [`RaceReport::operations`]: the module was loaded.
pub const LOAD: &str = "load";
/// [`RaceReport::operations`]: the module was unloaded.
pub const UNLOAD: &str = "unload";

/// [`RaceReport::operations`]: the driver had a report with the device and waited for the
/// acknowledgement, from the call of `virtballoon_free_page_report` to its return.
pub const REPORT: &str = "report";

/// What came of one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// How often it ended how: `ok`, or the name of the error, such as `EBUSY`.
    pub outcomes: BTreeMap<String, u64>,
    /// All of them together, in microseconds.
    pub total_us: u64,
    /// The longest, in microseconds.
    pub longest_us: u64,
    /// Of offlining that failed: how often while what else was under way; the empty name: nothing
    /// else, but threads that use memory.
    pub failed_beside: BTreeMap<String, u64>,
}

/// Name of the outcome of what worked.
pub const OK: &str = "ok";

impl Operation {
    /// How often it worked.
    pub fn ok(&self) -> u64 {
        self.outcomes.get(OK).copied().unwrap_or(0)
    }

    /// How often it was tried.
    pub fn tries(&self) -> u64 {
        self.outcomes.values().sum()
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (outcome, times) in &self.outcomes {
            write!(f, "{outcome} {times}, ")?;
        }
        let mean = self.total_us / self.tries().max(1);
        write!(f, "mean {mean} us, longest {} us", self.longest_us)
    }
}

/// How long it took to take memory blocks offline, and how much of that lay beside reports.
///
/// Only the report that is under way when a block begins to go offline can hold pages of it: once
/// the block is isolated nothing of it is reported any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offlines {
    /// Of how many the times were kept.
    pub count: u64,
    /// So long the half of them took at most, in microseconds.
    pub p50_us: u64,
    /// 99 of a hundred.
    pub p99_us: u64,
    /// 999 of a thousand.
    pub p999_us: u64,
    /// The longest of them, that first.
    pub longest: Vec<OneOffline>,
    /// Those that began while a report was under way, by the wait for its acknowledgement that lay
    /// before them, the longest first.
    pub behind_reports: Vec<OneOffline>,
    /// How many began so.
    pub behind_reports_count: u64,
    /// How many of these ended only after the acknowledgement.
    pub outlasted: u64,
    /// The longest that any took, less the wait for the acknowledgement that was under way when it
    /// began, in microseconds.
    pub longest_own_us: u64,
}

/// A memory block that was taken offline, or was to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneOffline {
    /// How long it took, in microseconds.
    pub us: u64,
    /// How much of that passed until the acknowledgement of the report that was under way when it
    /// began.
    pub behind_report_us: u64,
    /// How much of it passed while any report was under way.
    pub beside_reports_us: u64,
}

/// An operation that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    /// Of which kind, and on what.
    pub what: String,
    /// For how long, in milliseconds.
    pub ms: u64,
}

/// A memory block, as `/sys/devices/system/memory` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBlock {
    /// Its number: its first address over the size of a block.
    pub id: u32,
    /// `online`, `offline` or `going-offline`.
    pub state: String,
    /// The zone that it is in, or those that it could go to.
    pub zones: Vec<String>,
    /// Whether the kernel would try to take it offline.
    pub removable: bool,
}

/// The guest's memory blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBlocks {
    /// Size of one in bytes.
    pub block_bytes: u64,
    /// All of them, by number.
    pub blocks: Vec<MemoryBlock>,
}

impl MemoryBlocks {
    /// Numbers of the blocks that are online in `ZONE_MOVABLE`, where the kernel keeps only what it
    /// can move.
    pub fn movable(&self) -> Vec<u32> {
        let movable = |block: &&MemoryBlock| {
            block.state == "online" && block.zones.first().is_some_and(|zone| zone == "Movable")
        };
        self.blocks.iter().filter(movable).map(|block| block.id).collect()
    }
}

/// A task of the guest's kernel or user space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its number.
    pub pid: u32,
    /// Its name; of a kernel worker with what it works on.
    pub name: String,
    /// `R`, `S`, `D` (cannot be interrupted) and so on.
    pub state: char,
    /// The functions that it is in, the innermost first.
    pub stack: Vec<String>,
}
