// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypotheses in real Linux.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_agent::race::RacePlan;

use super::seen::Seen;
use super::watched::{FREED, KEPT, LOOK_EVERY, MIB, PATIENCE, QUIET, Watched, bytes, is_busy, mib};
use crate::faults::chain::Chain;
use crate::faults::plan::{Fault, FaultKind, FaultPlan};
use crate::race::linux::{complaint, set_block};
use crate::store::{Findings, VerdictKind};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::Toolbox;

const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
const MIN_FREE: &str = "/proc/sys/vm/min_free_kbytes";
const WATERMARK_SCALE: &str = "/proc/sys/vm/watermark_scale_factor";
/// A value of [`MIN_FREE`] with which the guest can use nearly all memory.
const LITTLE_KIB: u64 = 8 << 10;
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const TRACE_BUFFER: &str = "/sys/kernel/tracing/buffer_size_kb";
/// The first of many allocations.
const PIECES: u32 = 1000;

/// Leaves so little memory above the min watermark that a report cannot hold all of it.
pub(super) fn pass_stops(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    let watched = Watched::reported(toolbox, &[])?;
    let agent = watched.guest.agent();
    watched.set(MIN_FREE, LITTLE_KIB)?;
    agent.alloc(FREED, 200 * MIB, 1)?;
    watched.fill(56 * MIB)?;
    watched.rest()?;
    agent.free(FREED)?;
    let free = watched.free_bytes()?;
    // The pass looks whether 64 MiB lie above the low watermark, which is 5/4 of this one; it holds
    // up to 128 MiB.
    let kib = (free - 80 * MIB) / 5 * 4 / 1024;
    let before = watched.set(MIN_FREE, kib)?;
    let first = watched.rest_bytes()?;
    watched.set(MIN_FREE, before)?;
    let quiet = watched.rest_bytes()?;
    let trigger = watched.trigger()?;
    let text = format!(
        "200 MiB freed with {} MiB free and min_free_kbytes at {} MiB: {} MiB reported; {} more when \
         the watermark was low again; {} after 48 MiB had been freed",
        mib(free),
        kib / 1024,
        mib(first),
        mib(quiet),
        mib(trigger)
    );
    let left = (200 * MIB).saturating_sub(first);
    let shown = first > 0 && left > 16 * MIB && quiet < left / 4 && trigger > 48 * MIB + left / 4;
    Ok(watched.seen(shown, text))
}

/// Raises the watermark above the zone's free memory before the pass.
pub(super) fn zone_is_low(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    let watched = Watched::reported(toolbox, &[])?;
    let agent = watched.guest.agent();
    agent.alloc(FREED, 100 * MIB, 1)?;
    agent.free(FREED)?;
    let control = watched.rest_bytes()?;
    watched.set(MIN_FREE, LITTLE_KIB)?;
    agent.alloc(FREED, 100 * MIB, 1)?;
    watched.fill(120 * MIB)?;
    watched.rest()?;
    // The low watermark lies three tenths of memory above the min watermark then.
    let before = watched.set(WATERMARK_SCALE, 3000)?;
    agent.free(FREED)?;
    let low = watched.rest_bytes()?;
    watched.set(WATERMARK_SCALE, before)?;
    let quiet = watched.rest_bytes()?;
    let trigger = watched.trigger()?;
    let text = format!(
        "100 MiB freed: {} MiB reported; freed below the low watermark: {}; {} more when the watermark was \
         low again; {} after 48 MiB had been freed",
        mib(control),
        mib(low),
        mib(quiet),
        mib(trigger)
    );
    // To have something to free, the trigger uses some of what was not reported.
    let missed = low + quiet < 25 * MIB;
    let shown = control > 75 * MIB && missed && trigger > low + quiet + 32 * MIB;
    Ok(watched.seen(shown, text))
}

/// Offlines blocks that refuse, which isolates them in part for a moment.
pub(super) fn isolation_reports_again(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    const TIMES: u32 = 5;
    let watched = Watched::reported(toolbox, &[])?;
    let refused = watched.refused()?;
    watched.rest()?;
    let (size, _) = watched.blocks()?;
    let within = |chains: &[Chain]| -> u64 {
        let of = |block: &u32| {
            let start = u64::from(*block) * size;
            chains.iter().map(|chain| chain.bytes_within(start, start + size)).sum::<u64>()
        };
        refused.iter().map(of).sum()
    };
    let quiet = within(&watched.rest()?);
    let mut again = 0;
    for _ in 0..TIMES {
        for &block in &refused {
            let error = set_block(&watched.guest, block, "offline").err();
            let error = error.context("a block that had refused went offline")?;
            ensure!(is_busy(&error), "{error:#}");
        }
        again += within(&watched.rest()?);
    }
    let text = format!(
        "{} blocks that refuse to go offline, tried {TIMES} times in a quiet guest: {} MiB of theirs \
         reported again, {} without trying",
        refused.len(),
        mib(again),
        mib(quiet)
    );
    Ok(watched.seen(again >= 4 * MIB && again / u64::from(TIMES) > 2 * quiet, text))
}

/// Frees and reports every other piece of 2 MiB, then the rest.
pub(super) fn merging_reports_again(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    const COUNT: u32 = 96;
    let watched = Watched::reported(toolbox, &[])?;
    let agent = watched.guest.agent();
    for piece in 0..COUNT {
        agent.alloc(PIECES + piece, 2 * MIB, 1)?;
    }
    watched.rest()?;
    let quiet = watched.rest_bytes()?;
    let free = |odd| -> Result<Vec<Chain>> {
        for piece in (0..COUNT).filter(|piece| piece % 2 == odd) {
            agent.free(PIECES + piece)?;
        }
        watched.rest()
    };
    let (first, second) = (free(0)?, free(1)?);
    let twice = |chunk: (&u64, &u64)| -> u64 {
        first.iter().map(|chain| chain.bytes_within(*chunk.0, chunk.0 + chunk.1)).sum()
    };
    let chunks = second.iter().flat_map(|chain| chain.starts.iter().zip(&chain.sizes));
    let again: u64 = chunks.map(twice).sum();
    let text = format!(
        "every other of {COUNT} pieces of 2 MiB freed: {} MiB reported; the others freed: {} MiB, of \
         which {} had been reported and stayed free; {} in the quiet guest",
        mib(bytes(&first)),
        mib(bytes(&second)),
        mib(again),
        mib(quiet)
    );
    Ok(watched.seen(again >= 16 * MIB && quiet < 8 * MIB, text))
}

/// Leaves a report without acknowledgement, offlines a block that it holds, and unloads the driver.
pub(super) fn hung_backend(toolbox: &Toolbox, findings: &mut Findings) -> Result<Seen> {
    /// Longer than any operation takes in a healthy guest.
    const HANGS: Duration = Duration::from_secs(15);
    /// The number of chains before the fault, unless they are skipped.
    const FAR: u64 = 1 << 32;
    let drop = Fault { after: FAR, times: 0, ..Fault::new(FaultKind::DropAck) };
    let watched = Watched::boot(toolbox, FaultPlan::new(vec![drop])?, &["movablecore=640M"])?;
    let agent = watched.guest.agent();
    watched.guest.load_balloon_driver("")?;
    let movable = agent.memory_blocks()?.movable();
    let mut movable = movable.iter().copied();
    let mut removable =
        movable.by_ref().filter(|block| set_block(&watched.guest, *block, "offline").is_ok());
    let block = removable.next().context("no block goes offline")?;
    let other = removable.next().context("only one block goes offline")?;
    set_block(&watched.guest, other, "online_movable")?;
    watched.rest()?;
    watched.device.skip(FAR);
    // What comes online is reported, and nothing else is.
    set_block(&watched.guest, block, "online_movable")?;
    wait_until(PATIENCE, LOOK_EVERY, || match watched.device.served().faults {
        0 => Err("nothing is reported".to_owned()),
        _ => Ok(()),
    })?;
    let chains = watched.device.take_chains();
    let (size, _) = watched.blocks()?;
    let within = |block: u32| -> u64 {
        let start = u64::from(block) * size;
        chains.iter().map(|chain| chain.bytes_within(start, start + size)).sum()
    };
    let held = within(block);
    ensure!(held > 0 && within(other) == 0, "the report holds other memory: {chains:?}");
    set_block(&watched.guest, other, "offline").context("a block that the report does not hold")?;
    agent.start_race(&RacePlan {
        blocks: vec![block],
        online_as: "online_movable".to_owned(),
        cyclers: 1,
        reload: Some("virtio_balloon".to_owned()),
        pause_ms: 1000,
        ..RacePlan::default()
    })?;
    let hang = u64::try_from(HANGS.as_millis())?;
    let mut stuck = Vec::new();
    let both = wait_until(HANGS * 2, LOOK_EVERY * 4, || {
        let report = agent.race(false).map_err(|error| format!("{error:#}"))?;
        stuck =
            report.under_way.iter().filter(|on| on.ms > hang).map(|on| on.what.clone()).collect();
        if stuck.len() == 2 { Ok(()) } else { Err(format!("{stuck:?} hang so far")) }
    });
    for state in ['D', 'R'] {
        for task in agent.tasks(state)? {
            if !task.stack.is_empty() {
                findings.note(format!("{} ({state}) is in {}", task.name, task.stack.join(" < ")));
            }
        }
    }
    let text = format!(
        "a report of {} MiB of memory{block} is never acknowledged; for {HANGS:?} and on hang: {}; a block \
         that it did not hold went offline",
        mib(held),
        if stuck.is_empty() { "none".to_owned() } else { stuck.join(", ") },
    );
    Ok(watched.seen(both.is_ok(), text))
}

/// Changes the order while reports are in flight.
pub(super) fn order_changes_in_a_pass(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    const LATE_MS: u64 = 200;
    let late = Fault { times: 0, ms: Some(LATE_MS), ..Fault::new(FaultKind::DelayAck) };
    let watched = Watched::boot(toolbox, FaultPlan::new(vec![late])?, &[])?;
    let agent = watched.guest.agent();
    agent.alloc(KEPT, 64 * MIB, 1)?;
    watched.guest.load_balloon_driver("")?;
    let mut changes = Vec::new();
    let mut damaged = 0;
    for (round, order) in (1..=6_u16).zip([10_u64, 8, 9, 10, 7, 9].iter().cycle()) {
        agent.alloc(FREED, 192 * MIB, round)?;
        damaged += agent.verify(FREED)?.mismatches;
        agent.free(FREED)?;
        let began = Instant::now();
        while began.elapsed() < QUIET {
            for order in [*order, 9] {
                watched.set(ORDER, order)?;
                changes.push(Instant::now());
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
    damaged += agent.verify(KEPT)?.mismatches;
    let chains = watched.rest()?;
    let late = Duration::from_millis(LATE_MS);
    let within = |at: &&Instant| chains.iter().any(|c| c.at <= **at && **at < c.at + late);
    let within = changes.iter().filter(within).count();
    ensure!(within > 0, "no change fell into a report");
    let complaint = complaint(&watched.guest)?;
    let text = format!(
        "page_reporting_order changed {} times, {within} of them while a report was with the device, {} \
         reports: {damaged} words damaged, {}",
        changes.len(),
        chains.len(),
        complaint.as_deref().unwrap_or("no complaint of the kernel")
    );
    Ok(watched.seen(damaged > 0 || complaint.is_some(), text))
}

/// Frees and reports unmovable memory of the kernel.
pub(super) fn reporting_makes_movable(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    let watched = Watched::boot(toolbox, FaultPlan::default(), &[])?;
    // The buffer of the kernel's trace is unmovable, and as large as one likes.
    let before = watched.set(TRACE_BUFFER, 128 << 10)?;
    watched.set(TRACE_BUFFER, before)?;
    let unmovable = || -> Result<u64> {
        let text = watched.guest.agent().read_file("/proc/pagetypeinfo")?;
        unmovable_blocks(&text).context("/proc/pagetypeinfo does not count pageblocks")
    };
    let freed = unmovable()?;
    // Of a guest that does not report nothing comes; this is only for time to pass.
    watched.rest()?;
    let waited = unmovable()?;
    watched.guest.load_balloon_driver("")?;
    watched.rest()?;
    let reported = unmovable()?;
    let text = format!(
        "unmovable pageblocks when the kernel has freed 128 MiB of its own: {freed}, a while later \
         {waited}, when they were reported {reported}"
    );
    Ok(watched.seen(waited > reported + 16 && freed <= waited + 8, text))
}

/// All zones' pageblocks of that type, of `/proc/pagetypeinfo`.
fn unmovable_blocks(text: &str) -> Option<u64> {
    let (_, counts) = text.split_once("Number of blocks type")?;
    let of = |line: &str| line.split_once("zone")?.1.split_whitespace().nth(1)?.parse::<u64>().ok();
    Some(counts.lines().filter_map(of).sum())
}

/// Frees one huge page.
pub(super) fn huge_page_waits(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    let watched = Watched::reported(toolbox, &["transparent_hugepage=always"])?;
    let agent = watched.guest.agent();
    let refused = watched.refused()?;
    let drain = *refused.first().context("no block refuses")?;
    watched.rest()?;
    let huge_pages = || agent.meminfo().map(|info| info.bytes("AnonHugePages"));
    agent.alloc(FREED, 2 * MIB, 1)?;
    ensure!(huge_pages()? >= 2 * MIB, "the allocation is not of a huge page");
    watched.rest()?;
    agent.free(FREED)?;
    let waiting = watched.rest_bytes()?;
    // To take a block offline drains the per-CPU lists of its zone, even if it stays.
    let error = set_block(&watched.guest, drain, "offline").err();
    error.context("a block that had refused went offline")?;
    let (size, _) = watched.blocks()?;
    let start = u64::from(drain) * size;
    let chains = watched.rest()?;
    let inside: u64 = chains.iter().map(|chain| chain.bytes_within(start, start + size)).sum();
    let drained = bytes(&chains) - inside;
    let text = format!(
        "a huge page freed: {} MiB reported; {} MiB after the per-CPU lists were drained",
        mib(waiting),
        mib(drained)
    );
    Ok(watched.seen(waiting < 2 * MIB && drained >= 2 * MIB, text))
}

/// Sets the order to its largest and smallest value.
pub(super) fn extreme_orders(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    let watched =
        Watched::boot(toolbox, FaultPlan::default(), &["page_reporting.page_reporting_order=0"])?;
    let agent = watched.guest.agent();
    watched.guest.load_balloon_driver("")?;
    let chains = watched.rest()?;
    let order = agent.read_file(ORDER)?.trim().to_owned();
    let smallest = chains.iter().flat_map(|chain| &chain.sizes).min().copied().unwrap_or(0);
    watched.set(ORDER, 10)?;
    agent.alloc(FREED, 64 * MIB, 1)?;
    watched.rest()?;
    agent.free(FREED)?;
    let chains = watched.rest()?;
    let largest: Vec<u64> = chains.iter().flat_map(|chain| chain.sizes.clone()).collect();
    let all_large = largest.iter().all(|size| *size == 4 * MIB);
    let text = format!(
        "booted with order 0, which is {order} when the driver is there: chunks from {} KiB on; with \
         order 10 {} chunks, {} of 4 MiB",
        smallest / 1024,
        largest.len(),
        if all_large { "all" } else { "not all" }
    );
    let shown = order != "0" || smallest != 4096 || largest.is_empty() || !all_large;
    Ok(watched.seen(shown, text))
}

/// Fills the pool of huge pages, which are free but not in the allocator, and empties it.
pub(super) fn pool_is_not_reported(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    const PAGES: u64 = 64;
    let watched = Watched::boot(toolbox, FaultPlan::default(), &[])?;
    watched.set(HUGE_PAGES, PAGES)?;
    watched.guest.load_balloon_driver("")?;
    watched.rest()?;
    let in_pool = watched.guest.agent().meminfo()?.bytes("HugePages_Free") * 2 * MIB;
    ensure!(in_pool > 0, "there are no huge pages to be had");
    let quiet = watched.rest_bytes()?;
    watched.set(HUGE_PAGES, 0)?;
    let emptied = watched.rest_bytes()?;
    let text = format!(
        "{} MiB of free huge pages: {} MiB reported in the quiet guest, {} when the pool was emptied",
        mib(in_pool),
        mib(quiet),
        mib(emptied)
    );
    Ok(watched.seen(quiet < in_pool / 4 && emptied > in_pool / 2, text))
}

/// Brings an unused block online.
pub(super) fn online_is_reported(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    let watched = Watched::reported(toolbox, &["movablecore=512M"])?;
    let movable = watched.guest.agent().memory_blocks()?.movable();
    let gone = movable.iter().copied();
    let gone = gone.rev().find(|block| set_block(&watched.guest, *block, "offline").is_ok());
    let block = gone.context("no block goes offline")?;
    watched.rest()?;
    let (size, _) = watched.blocks()?;
    set_block(&watched.guest, block, "online_movable")?;
    let start = u64::from(block) * size;
    let chains = watched.rest()?;
    let reported: u64 = chains.iter().map(|chain| chain.bytes_within(start, start + size)).sum();
    let text = format!("a block of {} MiB came online: {} reported", mib(size), mib(reported));
    let seen = watched.seen(reported >= size / 10 * 9, text);
    Ok(by_design(seen))
}

/// Measures the time from a free to the first report.
pub(super) fn delay_before_a_report(toolbox: &Toolbox, _: &mut Findings) -> Result<Seen> {
    let watched = Watched::reported(toolbox, &[])?;
    let agent = watched.guest.agent();
    agent.alloc(FREED, 128 * MIB, 1)?;
    watched.rest()?;
    let freed = Instant::now();
    agent.free(FREED)?;
    let chains = watched.rest()?;
    let first = chains.first().context("nothing was reported")?;
    let after = first.at.saturating_duration_since(freed);
    let text = format!("128 MiB freed: the first report came {:.2} s later", after.as_secs_f64());
    Ok(by_design(watched.seen(after > Duration::from_millis(1500), text)))
}

/// An observation that shows intended behavior.
fn by_design((kind, text): Seen) -> Seen {
    let kind = if kind == VerdictKind::Shown { VerdictKind::AsDocumented } else { kind };
    (kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmovable_blocks_of_all_zones_are_added_up() {
        let text = "Page block order: 9\n\nFree pages count per migrate type at order       0      1\n\
                    Node    0, zone      DMA, type    Unmovable      1      0\n\n\
                    Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic\n\
                    Node 0, zone      DMA            3            5            0            0\n\
                    Node 0, zone    DMA32           14          488            8            0\n";
        assert_eq!(unmovable_blocks(text), Some(17));
        assert_eq!(unmovable_blocks("nothing"), None);
    }
}
