// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every scheme while nothing changes under an allocation.

use super::*;
use crate::page_alloc::{Geometry, Layout, MigrateType, NodeMask, ZoneLayout, ZoneType};
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

/// Two tasks of a cpuset, the first with two policies that follow it.
fn with_three_copies(scheme: Scheme, flaw: Option<Flaw>) -> (Placement, Arc<Supply>) {
    let bind = Policy::bind(nodes([1]));
    let task = |vmas| TaskSetup { cpuset: CpusetId(0), policy: bind, vmas };
    let tasks = vec![task(vec![bind]), task(vec![])];
    let setup = Setup { cpusets: vec![nodes([0, 1])], tasks, flaw };
    let supply = Arc::new(Supply::new());
    let placement = Placement::with_supply(mm(), scheme, &setup, supply.clone());
    (placement.expect("each has nodes"), supply)
}

/// The nodes of the first task, those of its policies, and of the second's.
fn all_nodes(placement: &Placement) -> [NodeMask; 4] {
    let policy = |task, vma| placement.mempolicy(TaskId(task), vma).nodes;
    [placement.mems_allowed(TaskId(0)), policy(0, TASK), policy(0, VMA), policy(1, TASK)]
}

const THAT_COPY: [Scheme; 5] = [
    Scheme::CountedCopy,
    Scheme::EpochCopy,
    Scheme::CountedZonelists,
    Scheme::SoftwallZonelists,
    Scheme::LockedZonelists,
];

#[test]
fn update_without_memory_leaves_all_as_it_was() {
    for scheme in THAT_COPY {
        let (placement, supply) = with_three_copies(scheme, None);
        let before = all_nodes(&placement);
        let copies = placement.copies();
        let mut allocations = 0;
        loop {
            supply.fail_after(allocations);
            let done = placement.set_mems(CpusetId(0), nodes([2, 64]));
            if done.is_ok() {
                break;
            }
            assert_eq!(done, Err(UpdateError::NoMemory), "{scheme}");
            assert_eq!(all_nodes(&placement), before, "{scheme}");
            allocations += 1;
        }
        // Three policies, and the nodes or a zonelist for each of 65 nodes and what leads there.
        let zonelists = scheme.name().ends_with("zonelists");
        assert_eq!(allocations, if zonelists { 3 + 65 + 1 } else { 3 + 1 }, "{scheme}");
        assert_eq!(copies.map(|copies| copies.live), placement.copies().map(|copies| copies.live));
        let after = [nodes([2, 64]), nodes([64]), nodes([64]), nodes([64])];
        assert_eq!(all_nodes(&placement), after, "{scheme}");
    }
}

#[test]
fn update_one_by_one_stays_in_the_middle() {
    let (placement, supply) = with_three_copies(Scheme::CountedCopy, Some(Flaw::SwapsOneByOne));
    let before = all_nodes(&placement);
    // To go back takes as many copies as were swapped in.
    supply.fail_after(2);
    assert_eq!(placement.set_mems(CpusetId(0), nodes([2, 64])), Err(UpdateError::NoMemory));
    assert_eq!(all_nodes(&placement), before);
    supply.fail(2, u64::MAX - 1);
    assert_eq!(placement.set_mems(CpusetId(0), nodes([2, 64])), Err(UpdateError::NoMemory));
    assert_eq!(all_nodes(&placement), [nodes([2, 64]), nodes([64]), nodes([1]), nodes([1])]);
}

#[test]
fn policy_without_memory_stays() {
    for scheme in THAT_COPY {
        let (placement, supply) = with_three_copies(scheme, None);
        supply.fail_after(0);
        let failed = placement.mbind(TaskId(0), Vma(0), Policy::bind(nodes([0])));
        assert_eq!(failed, Err(UpdateError::NoMemory), "{scheme}");
        assert_eq!(placement.mempolicy(TaskId(0), VMA).nodes, nodes([1]), "{scheme}");
    }
}

#[test]
fn copies_of_before_are_freed() {
    for scheme in THAT_COPY {
        let (placement, _) = with_three_copies(scheme, None);
        let bytes = placement.bytes();
        for update in 0..20 {
            let mems = if update % 2 == 0 { [2, 64] } else { [0, 1] };
            placement.set_mems(CpusetId(0), nodes(mems)).unwrap();
            // All that is allocated stays, in a small node.
            assert!(update > 3 || next(&placement, VMA).is_some(), "{scheme}");
        }
        let copies = placement.copies().unwrap();
        assert_eq!((copies.current, copies.live), (4, 4), "{scheme}");
        assert!(copies.peak <= 8, "{scheme}: {copies:?}");
        assert_eq!(placement.bytes(), bytes, "{scheme}");
    }
}

#[test]
fn static_policy_needs_no_copy() {
    for scheme in THAT_COPY {
        let policy = Policy { mode: Mode::Bind, flag: Nodes::Static, nodes: nodes([1, 2]) };
        let placement = placement(scheme, nodes([0, 1]), policy, Policy::DEFAULT);
        assert_eq!(next(&placement, TASK), Some(1), "{scheme}");
        placement.set_mems(CpusetId(0), nodes([2, 64])).unwrap();
        assert_eq!(next(&placement, TASK), Some(2), "{scheme}");
        assert_eq!(placement.mempolicy(TaskId(0), TASK).nodes, nodes([2]), "{scheme}");
    }
}

/// Pages of the kernel and of a program, in a cpuset of the second of two nodes.
#[test]
fn softwall_goes_beyond_the_cpuset_and_hardwall_not() {
    let zone = |node: u8| ZoneLayout {
        node,
        kind: ZoneType::Normal,
        sections: core::iter::once(usize::from(node)..usize::from(node) + 1).collect(),
    };
    let geometry = Geometry { section_order: 10, ..Geometry::TINY };
    let layout = Layout { zones: vec![zone(0), zone(1)], ..Layout::flat(geometry, 1, 2) };
    let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![] };
    for (scheme, first) in [
        (Scheme::CountedZonelists, 0),
        (Scheme::LockedZonelists, 0),
        (Scheme::SoftwallZonelists, 1),
    ] {
        let tasks = vec![task.clone()];
        let setup = Setup { cpusets: vec![nodes([1])], tasks, flaw: None };
        let placement = Placement::new(Arc::new(Mm::new(&layout)), scheme, &setup).unwrap();
        let program = AllocRequest::movable(0);
        let kernel = AllocRequest { migratetype: MigrateType::Unmovable, ..program };
        let next = |request| {
            let page = placement.alloc(TaskId(0), None, 0, request).ok()?;
            Some(placement.mm().zone(placement.mm().zone_of(page)?).node())
        };
        assert_eq!((next(kernel), next(program)), (Some(first), Some(1)), "{scheme}");
        while let Some(node) = next(program) {
            assert_eq!(node, 1, "{scheme}");
        }
        assert_eq!(next(kernel), Some(0), "{scheme}");
    }
}

/// A zone that gets its first memory is in no cpuset's lists, until they are rebuilt. Without memory for all
/// of them none is.
#[test]
fn own_zonelists_follow_memory_once_rebuilt() {
    use super::zonelists::Zonelists;
    let zone = |node: u8, sections| ZoneLayout { node, kind: ZoneType::Movable, sections };
    let zones = vec![zone(0, core::iter::once(0..1).collect()), zone(1, vec![])];
    let mm = Arc::new(Mm::new(&Layout { zones, ..Layout::flat(Geometry::TINY, 1, 2) }));
    let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![] };
    let setup = Setup { cpusets: vec![nodes([1]), nodes([0])], tasks: vec![task], flaw: None };
    let supply = Arc::new(Supply::new());
    let scheme = Zonelists::counted(Arc::clone(&mm), &setup, false, Arc::clone(&supply)).unwrap();
    mm.add_section(1, crate::page_alloc::ZoneId(1));
    mm.online_block(1).unwrap();
    let request = AllocRequest::movable(0);
    let ask = Ask { task: TaskId(0), vma: None, cpu: 0, request, most_tries: 2 };
    assert!(scheme.alloc(&mm, &ask).page.is_err());
    supply.fail_after(3);
    assert_eq!(scheme.rebuild(), Err(UpdateError::NoMemory));
    assert!(scheme.alloc(&mm, &ask).page.is_err());
    assert_eq!(scheme.rebuild(), Ok(()));
    assert!(scheme.alloc(&mm, &ask).page.is_ok());
}

/// Sets of zonelists grow by the square of the nodes, copies of their nodes do not.
#[test]
fn bytes_grow_with_the_nodes_of_the_system() {
    let bytes = |scheme: Scheme, count: u8| {
        let zone = |node: u8| ZoneLayout { node, kind: ZoneType::Movable, sections: vec![] };
        let zones = (0..count).map(zone).collect();
        let layout = Layout { zones, ..Layout::flat(Geometry::TINY, 1, 1) };
        let setup = Setup { cpusets: vec![NodeMask::of(0)], ..Setup::default() };
        Placement::new(Arc::new(Mm::new(&layout)), scheme, &setup).unwrap().bytes()
    };
    // An entry has 8 bytes, here on a machine of 64 bits.
    let entries = |count: usize, lists: usize| 8 * lists * count * (count + 1);
    for (scheme, lists) in [
        (Scheme::CountedZonelists, 2),
        (Scheme::SoftwallZonelists, 4),
        (Scheme::LockedZonelists, 2),
    ] {
        let grown = bytes(scheme, 128) - bytes(scheme, 1);
        assert_eq!(grown, entries(128, lists) - entries(1, lists), "{scheme}");
    }
    for scheme in [Scheme::CountedCopy, Scheme::EpochCopy] {
        assert_eq!(bytes(scheme, 128), bytes(scheme, 1), "{scheme}");
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
