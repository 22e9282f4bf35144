// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux's half.

use anyhow::{Result, ensure};
use guest_agent::race::MemoryBlock;
use vmm_integration::linux_guest::{AgentClient, isolation};
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

use super::{
    CPUS, Guest, Sizes, figures, halves_figure, lists_figure, model, offline_figures, passes, rest,
};
use crate::faults::device::FaultyDevice;
use crate::faults::plan::FaultPlan;
use crate::race::zoneinfo::{self, Zone};
use crate::store::Findings;

/// Seconds between two updates of the statistics, which take more than all of the experiment.
const NO_UPDATES: &str = "1000";
/// A share of a zone so small that a list holds four batches.
const SHORT_LISTS: &str = "100000";

/// Uses memory and frees it in one of the guests with Linux.
pub(super) fn run(toolbox: &Toolbox, memory: u64, freed: u64, case: Guest) -> Result<Findings> {
    let device = FaultyDevice::start(FaultPlan::default())?;
    let huge_pages = match case {
        Guest::LinuxLowWatermarks | Guest::LinuxNoDecay => "never",
        // khugepaged raises the watermarks; programs get base pages in any case.
        _ => "madvise",
    };
    let config = GuestConfig {
        memory_bytes: memory,
        cpus: CPUS,
        balloon: Balloon::VhostUser { socket: device.socket() },
        kernel_args: vec![format!("transparent_hugepage={huge_pages}")],
        own_modules: case.isolating().is_some(),
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(toolbox, config)?;
    guest.load_balloon_driver("")?;
    let agent = guest.agent();
    let zone = || zoneinfo::largest(&agent.read_file("/proc/zoneinfo")?);
    match case {
        Guest::LinuxNoDecay => agent.write_file("/proc/sys/vm/stat_interval", NO_UPDATES)?,
        Guest::LinuxShortLists | Guest::LinuxIsolatingShortLists => {
            agent.write_file("/proc/sys/vm/percpu_pagelist_high_fraction", SHORT_LISTS)?;
        }
        _ => {}
    }
    if let Some(tracker) = case.isolating() {
        isolation::load(agent, &format!("tracker={tracker} hold=isolate"))?;
    }
    rest(&device)?;
    let halves = zoneinfo::free_pageblocks(&agent.read_file("/proc/buddyinfo")?);
    agent.alloc(1, freed, 1)?;
    rest(&device)?;
    agent.free(1)?;
    let after_free = zone()?;
    let chains = rest(&device)?;
    ensure!(!chains.is_empty(), "Linux reported nothing");
    let mut findings = figures(&passes(chains));
    halves_figure(&mut findings, halves);
    let at_rest = zone()?;
    lists_figure(&mut findings, "after-free", "when all was freed", after_free.on_lists());
    let what = "when nothing more was reported";
    lists_figure(&mut findings, "at-rest", what, at_rest.on_lists());
    sizes(&at_rest).figures("", "", &mut findings);
    if case == Guest::Linux {
        sizes_of_both(agent, &at_rest, &mut findings)?;
    }
    if matches!(case, Guest::Linux | Guest::LinuxIsolating) {
        offline(agent, &mut findings)?;
    }
    findings.note(format!("Linux {}", guest.hello().kernel_release));
    Ok(findings)
}

fn sizes(zone: &Zone) -> Sizes {
    Sizes {
        managed: zone.pages("managed"),
        watermarks: ["min", "low", "high"].map(|mark| zone.pages(mark)),
        lists: zone.cpus.first().copied().unwrap_or_default(),
    }
}

/// What the model gives a zone of this size; all zones as a note.
fn sizes_of_both(agent: &AgentClient, zone: &Zone, findings: &mut Findings) -> Result<()> {
    let of = ", as the model has it for a zone of this size";
    model::sizes_of(zone.pages("managed"))?.figures("model-", of, findings);
    for zone in zoneinfo::parse(&agent.read_file("/proc/zoneinfo")?) {
        findings.note(format!(
            "/proc/zoneinfo: {}: {} managed, min {}, low {}, high {}, boost {}, protection {:?}, lists {:?}",
            zone.name,
            zone.pages("managed"),
            zone.pages("min"),
            zone.pages("low"),
            zone.pages("high"),
            zone.pages("boost"),
            zone.protection,
            zone.cpus,
        ));
    }
    Ok(())
}

/// Takes memory blocks offline, one that cannot go and one that is free.
fn offline(agent: &AgentClient, findings: &mut Findings) -> Result<()> {
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
    offline_figures(findings, free, errno.as_deref().unwrap_or("it went offline"));
    Ok(())
}
