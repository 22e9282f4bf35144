// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every scheme while nothing changes under an allocation.

use super::*;
use crate::page_alloc::{Geometry, Layout, ZoneLayout, ZoneType};
use alloc::vec;

/// The nodes that have memory, one section each.
const NODES: [u8; 4] = [0, 1, 2, 64];

fn mm() -> Arc<Mm> {
    let zone = |(at, node): (usize, u8)| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: core::iter::once(at..at + 1).collect(),
    };
    let zones = NODES.into_iter().enumerate().map(zone).collect();
    Arc::new(Mm::new(&Layout { zones, ..Layout::flat(Geometry::TINY, 1, NODES.len()) }))
}

fn nodes<const N: usize>(nodes: [u8; N]) -> NodeMask {
    nodes.into_iter().collect()
}

/// A task with a policy, and a VMA with another.
fn placement(scheme: Scheme, mems: NodeMask, policy: Policy, vma: Policy) -> Placement {
    let task = TaskSetup { cpuset: CpusetId(0), policy, vmas: vec![vma] };
    let setup = Setup { cpusets: vec![mems], tasks: vec![task], flaw: None };
    Placement::new(mm(), scheme, &setup).expect("each has nodes")
}

/// The node of the next page, which is kept.
fn next(placement: &Placement, vma: Option<Vma>) -> Option<u8> {
    let page = placement.alloc(TaskId(0), vma, 0, AllocRequest::movable(0)).ok()?;
    let zone = placement.mm().zone_of(page)?;
    Some(placement.mm().zone(zone).node())
}

const TASK: Option<Vma> = None;
const VMA: Option<Vma> = Some(Vma(0));

#[test]
fn pages_come_from_the_cpuset_after_an_update() {
    for &scheme in Scheme::ALL {
        let bind = Policy::bind(nodes([1]));
        let placement = placement(scheme, nodes([0, 1]), Policy::DEFAULT, bind);
        assert_eq!((next(&placement, TASK), next(&placement, VMA)), (Some(0), Some(1)));
        placement.set_mems(CpusetId(0), nodes([2, 64])).unwrap();
        assert_eq!(placement.mems_allowed(TaskId(0)), nodes([2, 64]), "{scheme}");
        // Without rebinding the VMA's nodes are none of the cpuset's.
        let expected = if scheme == Scheme::NoRebind { 2 } else { 64 };
        assert_eq!((next(&placement, TASK), next(&placement, VMA)), (Some(2), Some(expected)));
        placement.set_mems(CpusetId(0), nodes([0, 1])).unwrap();
        assert_eq!((next(&placement, TASK), next(&placement, VMA)), (Some(0), Some(1)), "{scheme}");
    }
}

#[test]
fn allocation_beyond_its_nodes_fails() {
    for &scheme in Scheme::ALL {
        let placement = placement(scheme, nodes([0, 1]), Policy::bind(nodes([1])), Policy::DEFAULT);
        let pages = Geometry::TINY.section_pages();
        for _ in 0..pages {
            assert_eq!(next(&placement, VMA), Some(1), "{scheme}");
        }
        let request = AllocRequest::movable(0);
        let ask = Ask { task: TaskId(0), vma: VMA, cpu: 0, request, most_tries: 100 };
        let outcome = placement.ask(&ask);
        assert_eq!(outcome.page, Err(AllocError::OutOfMemory), "{scheme}");
        assert_eq!((outcome.ooms, outcome.restarts, outcome.abandoned), (1, 0, false), "{scheme}");
        // Its task may use the others.
        placement.set_policy(TaskId(0), Policy::DEFAULT).unwrap();
        assert_eq!(next(&placement, TASK), Some(0), "{scheme}");
    }
}

#[test]
fn preferred_node_gives_way_to_any_allowed() {
    for &scheme in Scheme::ALL {
        let policy = Policy { mode: Mode::Preferred, flag: Nodes::Remapped, nodes: nodes([64, 2]) };
        let placement = placement(scheme, nodes([0, 2, 64]), policy, Policy::DEFAULT);
        assert_eq!(next(&placement, TASK), Some(2), "{scheme}");
        placement.set_mems(CpusetId(0), nodes([64])).unwrap();
        assert_eq!(next(&placement, TASK), Some(64), "{scheme}");
    }
}

#[test]
fn interleaved_pages_take_turns() {
    for &scheme in Scheme::ALL {
        let policy =
            Policy { mode: Mode::Interleave, flag: Nodes::Remapped, nodes: nodes([0, 2, 64]) };
        let placement = placement(scheme, nodes([0, 1, 2, 64]), policy, policy);
        for of in [TASK, VMA] {
            let turn = [0; 5].map(|_| next(&placement, of));
            assert_eq!(turn, [0, 2, 64, 0, 2].map(Some), "{scheme}");
        }
    }
}

#[test]
fn vma_policy_goes_before_the_tasks() {
    for &scheme in Scheme::ALL {
        let placement =
            placement(scheme, nodes([0, 1, 2]), Policy::bind(nodes([1])), Policy::DEFAULT);
        assert_eq!(next(&placement, VMA), Some(1));
        placement.mbind(TaskId(0), Vma(0), Policy::bind(nodes([2, 64]))).unwrap();
        assert_eq!((next(&placement, VMA), next(&placement, TASK)), (Some(2), Some(1)));
        let wrong = placement.mbind(TaskId(0), Vma(0), Policy::bind(nodes([64])));
        assert_eq!(wrong, Err(UpdateError::NoNodes), "{scheme}");
        assert_eq!(placement.mempolicy(TaskId(0), VMA).nodes, nodes([2]), "{scheme}");
    }
}

#[test]
fn cpuset_without_nodes_is_refused() {
    for &scheme in Scheme::ALL {
        let placement = placement(scheme, nodes([0]), Policy::DEFAULT, Policy::DEFAULT);
        let refused = placement.set_mems(CpusetId(0), NodeMask::EMPTY);
        assert_eq!(refused, Err(UpdateError::NoNodes));
        assert_eq!(placement.mems_allowed(TaskId(0)), nodes([0]), "{scheme}");
        let setup = Setup { cpusets: vec![NodeMask::EMPTY], ..Setup::default() };
        let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![] };
        let setup = Setup { tasks: vec![task], ..setup };
        assert!(Placement::new(mm(), scheme, &setup).is_err(), "{scheme}");
    }
}

#[test]
fn scheme_is_parsed_by_name_and_documented() {
    let page = include_str!("../../../docs/design/model.md");
    for &scheme in Scheme::ALL {
        assert_eq!(scheme.name().parse(), Ok(scheme));
        assert!(page.contains(&format!("\n| `{scheme}` |")), "{scheme} has no row in model.md");
    }
    assert_eq!(Scheme::NAMES.len(), Scheme::ALL.len());
    for flaw in Flaw::ALL {
        assert!(page.contains(&format!("`{flaw}`")), "{flaw} is not in model.md");
    }
}
