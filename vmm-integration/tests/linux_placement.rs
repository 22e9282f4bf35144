// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tasks of a real guest with two NUMA nodes: the guest sees the nodes, a cpuset and a policy confine
//! a task to one of them, and a task that asks for more than its node has is killed.

use std::time::Duration;

use anyhow::{Context, Result};
use guest_agent::placement::{
    DONE, KILLED, PlacedTask, PlacementPlan, PlacementReport, Policy, Scope,
};
use vmm_integration::measure::host;
use vmm_integration::vmm::qemu::{self, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
const NODES: [u64; 2] = [512 * MIB, 256 * MIB];

fn boot() -> Result<LinuxGuest> {
    let config = GuestConfig {
        memory_bytes: NODES.iter().sum(),
        node_bytes: NODES.to_vec(),
        kernel_args: vec!["transparent_hugepage=never".to_owned()],
        ..GuestConfig::default()
    };
    LinuxGuest::boot(&qemu::available()?, config)
}

fn run(guest: &LinuxGuest, plan: &PlacementPlan) -> Result<PlacementReport> {
    guest.agent().start_placement(plan)?;
    let mut report = PlacementReport::default();
    host::wait_until(Duration::from_secs(120), Duration::from_millis(50), || {
        report = guest.agent().placement(false).map_err(|error| format!("{error:#}"))?;
        if report.running { Err(format!("{report:?}")) } else { Ok(()) }
    })?;
    println!("{report:?}");
    Ok(report)
}

/// Pages of each node that are in use, as `numastat` has them.
fn allocated(guest: &LinuxGuest, node: usize) -> Result<u64> {
    let path = format!("/sys/devices/system/node/node{node}/numastat");
    let text = guest.agent().read_file(&path)?;
    let count = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("{path} has no {name}"))?.trim().parse()?)
    };
    Ok(count("numa_hit ")? + count("numa_miss ")?)
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn cpuset_and_policy_confine_a_task_to_a_node() {
    let guest = boot().unwrap();
    assert!(guest.resident_bytes().unwrap() > 0);
    let full = 2 * NODES[1];
    let task = |policy, scope, nodes: &[u32], bytes| PlacedTask {
        policy,
        scope,
        nodes: nodes.to_vec(),
        bytes,
        rounds: 1,
        ..PlacedTask::default()
    };
    let alone = |task, mems: &[&str]| PlacementPlan {
        tasks: vec![task],
        mems: mems.iter().map(|&mems| mems.to_owned()).collect(),
        ..PlacementPlan::default()
    };
    for (policy, scope, nodes, mems) in [
        (Policy::Default, Scope::Task, &[][..], &["1"][..]),
        (Policy::Bind, Scope::Task, &[1], &[]),
        (Policy::Bind, Scope::Mapping, &[1], &[]),
    ] {
        let before = allocated(&guest, 1).unwrap();
        let fits = run(&guest, &alone(task(policy, scope, nodes, 64 * MIB), mems)).unwrap();
        assert_eq!((fits.ends(DONE), fits.pages()), (1, 64 * MIB / 4096));
        assert!(allocated(&guest, 1).unwrap() - before >= 64 * MIB / 4096, "{policy:?} {scope:?}");
        let killed = run(&guest, &alone(task(policy, scope, nodes, full), mems)).unwrap();
        assert_eq!((killed.ends(KILLED), killed.ends(DONE)), (1, 0));
    }
    let free =
        run(&guest, &alone(task(Policy::Interleave, Scope::Mapping, &[0, 1], MIB), &[])).unwrap();
    assert_eq!(free.ends(DONE), 1);
    let serial = guest.serial().unwrap();
    for (constraint, times) in [("CPUSET", 1), ("MEMORY_POLICY", 2)] {
        let kills = format!("oom-kill:constraint=CONSTRAINT_{constraint},");
        assert_eq!(serial.matches(&kills).count(), times, "{serial}");
    }
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn changing_cpuset_moves_tasks_between_nodes() {
    let guest = boot().unwrap();
    let tasks = vec![
        PlacedTask { bytes: MIB, ..PlacedTask::default() },
        PlacedTask {
            policy: Policy::Interleave,
            scope: Scope::Mapping,
            nodes: vec![0, 1],
            bytes: MIB,
            rest_ms: 2,
            ..PlacedTask::default()
        },
    ];
    let mems = vec!["0-1".to_owned(), "0".to_owned(), "1".to_owned()];
    let plan = PlacementPlan { tasks, mems, flips: 30, again: true, ..PlacementPlan::default() };
    let report = run(&guest, &plan).unwrap();
    assert_eq!(report.flips, 30);
    assert!(report.hierarchy.is_some() && report.failed_flips.is_empty());
    assert!(report.tasks.iter().all(|task| task.pages > 0), "{report:?}");
    // A plan that runs until it is stopped.
    let endless = PlacementPlan { mems: Vec::new(), flips: 0, ..plan };
    guest.agent().start_placement(&endless).unwrap();
    assert!(guest.agent().start_placement(&endless).is_err(), "one at a time");
    host::wait_until(Duration::from_secs(60), Duration::from_millis(50), || {
        let report = guest.agent().placement(true).map_err(|error| format!("{error:#}"))?;
        if report.running { Err(format!("{report:?}")) } else { Ok(()) }
    })
    .unwrap();
    assert_eq!(guest.quit().unwrap(), "", "QEMU has nothing to complain about");
}
