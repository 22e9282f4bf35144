// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory a cpuset, from one cpuset to ten thousand, and from one node to all that there can be.
//!
//! Each cpuset has all nodes and a task, whose VMA has a policy if the allocations of the case do. It is
//! what the model keeps, without locks and books that are the model's own.

use std::sync::Arc;

use anyhow::Result;
use guest_driver::page_alloc::{
    Geometry, Layout, Mm, NodeMask, ZoneLayout, ZoneType, ZonelistUpdate,
};
use guest_driver::placement::{CpusetId, Placement, Policy, Scheme, Setup, TaskId, TaskSetup, Vma};

use super::subject::{Asks, Which};
use super::zonelists;
use crate::experiment::Context;
use crate::progress;
use crate::store::Findings;

const CPUSETS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
/// Of the guest with that many cpusets.
const NODES_OF_CPUSETS: u8 = 4;
const NODES: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Of the guest with that many nodes.
const CPUSETS_OF_NODES: usize = 100;

/// Curves over both, and their ends as figures.
pub(super) fn run(which: Which, context: &Context<'_>, findings: &mut Findings) -> Result<()> {
    context.progress.say("bytes");
    let (scheme, asks) = match which {
        Which::Cpuset(scheme, asks) => (scheme, asks),
        Which::Zonelist(update) => return of_zonelists(update, findings),
    };
    let a_cpuset = |cpusets: usize, nodes: u8| {
        progress::check()?;
        #[allow(clippy::cast_precision_loss)] // a figure for people
        Ok::<f64, anyhow::Error>(bytes(scheme, asks, cpusets, nodes)? as f64 / cpusets as f64)
    };
    let mut points = Vec::new();
    for cpusets in CPUSETS {
        let value = a_cpuset(cpusets, NODES_OF_CPUSETS)?;
        points.push((f64::from(u32::try_from(cpusets)?), value));
    }
    let what = format!("memory a cpuset of {NODES_OF_CPUSETS} nodes");
    ends(findings, ("bytes", "cpusets"), &what, &points);
    findings.series("bytes-by-cpusets", ("cpusets", "B"), &what, points);
    let mut points = Vec::new();
    for nodes in NODES {
        points.push((f64::from(nodes), a_cpuset(CPUSETS_OF_NODES, nodes)?));
    }
    let what = format!("memory a cpuset, with {CPUSETS_OF_NODES} of them");
    ends(findings, ("bytes", "nodes"), &what, &points);
    findings.series("bytes-by-nodes", ("nodes", "B"), &what, points);
    Ok(())
}

/// The curve over nodes of all zonelists of a guest.
fn of_zonelists(update: ZonelistUpdate, findings: &mut Findings) -> Result<()> {
    let mut points = Vec::new();
    for nodes in NODES {
        let bytes = zonelists::guest(update, usize::from(nodes))?.zonelist_bytes();
        points.push((f64::from(nodes), f64::from(u32::try_from(bytes)?)));
    }
    let what = "memory of all zonelists, one for each node";
    ends(findings, ("bytes", "nodes"), what, &points);
    findings.series("bytes-by-nodes", ("nodes", "B"), what, points);
    Ok(())
}

/// The first and the last point of a curve as figures.
fn ends(findings: &mut Findings, (name, unit): (&str, &str), what: &str, points: &[(f64, f64)]) {
    for &(x, bytes) in points.first().into_iter().chain(points.last()) {
        let what = format!("{what}, {x} {unit}");
        findings.figure(&format!("{name}-{unit}-{x}"), bytes, "B", &what);
    }
}

/// Bytes of so many cpusets of all nodes.
fn bytes(scheme: Scheme, asks: Asks, cpusets: usize, nodes: u8) -> Result<usize> {
    let all = NodeMask::first_nodes(nodes);
    let zone = |node: u8| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: std::iter::once(usize::from(node)..usize::from(node) + 1).collect(),
    };
    let sections = usize::from(nodes);
    let zones = (0..nodes).map(zone).collect();
    let mm = Arc::new(Mm::new(&Layout { zones, ..Layout::flat(Geometry::TINY, 1, sections) }));
    let vma = match asks {
        Asks::Default => Policy::DEFAULT,
        Asks::Bind => Policy::bind(all),
    };
    let task =
        |cpuset| TaskSetup { cpuset: CpusetId(cpuset), policy: Policy::DEFAULT, vmas: vec![vma] };
    let tasks = (0..cpusets).map(task).collect();
    let setup = Setup { cpusets: vec![all; cpusets], tasks, ..Setup::default() };
    let placement = Placement::new(mm, scheme, &setup)?;
    debug_assert_eq!(placement.mempolicy(TaskId(0), Some(Vma(0))).policy, vma);
    Ok(placement.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_do_not_grow_with_the_nodes() {
        let of = |nodes| bytes(Scheme::CheckAtRetry, Asks::Bind, 100, nodes).unwrap();
        assert_eq!(of(1), of(128));
        assert!(of(1) > 0);
    }

    #[test]
    fn each_cpuset_takes_memory() {
        for &scheme in Scheme::ALL {
            let of = |cpusets| bytes(scheme, Asks::Default, cpusets, 4).unwrap();
            assert!(of(1_000) > 9 * of(100), "{scheme}: {} {}", of(1_000), of(100));
        }
    }
}
