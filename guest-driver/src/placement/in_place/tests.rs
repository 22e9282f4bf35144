// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where each scheme looks, and what it sees there.

use super::rules::{
    CheckAfterReclaim, CheckAtRetry, IntersectionCheck, NoRebind, Overwrite, TwoScopes, TwoStep,
};
use super::*;
use crate::page_alloc::{Constraint, Look};
use crate::placement::policy::Nodes;
use crate::placement::protocol::TaskSetup;
use alloc::vec;
use alloc::vec::Vec;

const LOOKS: [Look; 4] = [Look::TopOfRetry, Look::AfterReclaim, Look::BeforeOom, Look::NoPage];

fn mask(word: u64) -> NodeMask {
    NodeMask::from_words([word, 0])
}

fn small() -> impl Iterator<Item = NodeMask> + Clone {
    (1..16).map(mask)
}

/// A task, its policy, and that of its VMA, in a cpuset.
fn task(mems: NodeMask, policy: Policy, vma: Policy) -> Task {
    let setup = TaskSetup { cpuset: CpusetId(0), policy, vmas: vec![vma] };
    Task::new(&setup, mems).expect("each has nodes")
}

/// An allocation that has not begun.
fn limits<'a, R>(task: &'a Task, nodemask: Option<&'a AtomicNodeMask>) -> Limits<'a, R> {
    Limits {
        task,
        nodemask,
        atomic: false,
        flaw: None,
        most_tries: u32::MAX,
        tally: Tally::default(),
        walk: Walk::Fast,
        rules: PhantomData,
    }
}

/// Whether an allocation for a bound VMA begins again if the cpuset changes before its slow path and the
/// VMA's policy has not followed, at each of the looks; and if it changes in the slow path.
fn restarts<R: Rules>() -> [Vec<Look>; 2] {
    [true, false].map(|before| {
        let sees = |&look: &Look| {
            let task = task(mask(0b01), Policy::DEFAULT, Policy::bind(mask(0b01)));
            let mut limits = limits::<R>(&task, Some(&task.vmas[0].nodes));
            if before {
                task.set_mems::<R>(mask(0b10), None);
            }
            limits.begin();
            if !before {
                task.set_mems::<R>(mask(0b10), None);
            }
            limits.must_restart(look)
        };
        LOOKS.into_iter().filter(sees).collect()
    })
}

#[test]
fn change_before_the_slow_path_is_seen_by_its_nodes() {
    use Look::{AfterReclaim, BeforeOom, NoPage, TopOfRetry};
    // Two-scopes: its second scope begins after the change.
    assert_eq!(restarts::<Overwrite>(), [vec![], vec![]]);
    assert_eq!(restarts::<TwoStep>(), [vec![], vec![NoPage]]);
    assert_eq!(restarts::<TwoScopes>(), [vec![], vec![BeforeOom, NoPage]]);
    assert_eq!(restarts::<IntersectionCheck>(), [(); 2].map(|()| vec![BeforeOom, NoPage]));
    let all = vec![TopOfRetry, BeforeOom, NoPage];
    assert_eq!(restarts::<CheckAtRetry>(), [all.clone(), all.clone()]);
    assert_eq!(restarts::<NoRebind>(), [all.clone(), all]);
    let all = vec![AfterReclaim, BeforeOom, NoPage];
    assert_eq!(restarts::<CheckAfterReclaim>(), [all.clone(), all]);
}

/// Whether an allocation that the cpuset of this update has not changed the nodes of begins again.
fn sees_update<R: Rules>(policy: Policy, from: u64, to: u64) -> bool {
    let task = task(mask(from), policy, Policy::DEFAULT);
    let mut limits = limits::<R>(&task, None);
    limits.begin();
    task.set_mems::<R>(mask(to), None);
    limits.must_restart(Look::NoPage)
}

#[test]
fn sequence_count_changes_where_needed() {
    let bound = Policy::bind(mask(0b10));
    // A node stays.
    assert!(!sees_update::<TwoScopes>(Policy::DEFAULT, 0b011, 0b110));
    assert!(sees_update::<TwoScopes>(bound, 0b011, 0b110));
    assert!(sees_update::<TwoScopes>(Policy::DEFAULT, 0b001, 0b110));
    assert!(sees_update::<IntersectionCheck>(Policy::DEFAULT, 0b011, 0b110));
    assert!(!sees_update::<Overwrite>(bound, 0b011, 0b100));
}

#[test]
fn nodemask_apart_from_the_cpuset_is_dropped_once() {
    let task = task(mask(0b01), Policy::DEFAULT, Policy::bind(mask(0b01)));
    let mut limits = limits::<CheckAtRetry>(&task, Some(&task.vmas[0].nodes));
    task.set_mems::<CheckAtRetry>(mask(0b10), None);
    limits.begin();
    assert!(!limits.allows(0) && !limits.allows(1) && limits.in_nodemask(0));
    assert!(limits.must_restart(Look::BeforeOom));
    limits.begin();
    assert!(limits.allows(1) && !limits.allows(0) && limits.in_nodemask(2));
    assert!(LOOKS.into_iter().all(|look| !limits.must_restart(look)));
    assert_eq!(limits.tally.outcome(Err(AllocError::OutOfMemory)).restarts, 1);
}

#[test]
fn restart_counts_from_then_on() {
    let task = task(mask(0b01), Policy::DEFAULT, Policy::DEFAULT);
    let mut limits = limits::<CheckAtRetry>(&task, None);
    limits.begin();
    task.set_mems::<CheckAtRetry>(mask(0b10), None);
    assert!(limits.must_restart(Look::TopOfRetry));
    limits.begin();
    assert!(!limits.must_restart(Look::TopOfRetry));
}

#[test]
fn task_nodes_are_the_nodemask_of_the_first_walk() {
    let task = task(mask(0b10), Policy::DEFAULT, Policy::DEFAULT);
    let mut limits = limits::<CheckAtRetry>(&task, None);
    assert!(!limits.in_nodemask(0) && limits.in_nodemask(1));
    limits.begin();
    assert!(limits.in_nodemask(0) && !limits.allows(0) && limits.allows(1));
}

#[test]
fn atomic_slow_path_ignores_the_cpuset() {
    let task = task(mask(0b10), Policy::DEFAULT, Policy::DEFAULT);
    let mut limits = Limits { atomic: true, ..limits::<CheckAtRetry>(&task, None) };
    assert!(!limits.allows(0));
    limits.begin();
    assert!(limits.allows(0) && limits.allows(1));
}

#[test]
fn allocation_that_tries_too_often_is_abandoned() {
    let task = task(mask(0b1), Policy::DEFAULT, Policy::DEFAULT);
    let mut limits = Limits { most_tries: 2, ..limits::<CheckAtRetry>(&task, None) };
    limits.begin();
    for _ in 0..2 {
        assert!(!limits.must_restart(Look::TopOfRetry) && limits.allows(0));
    }
    limits.must_restart(Look::TopOfRetry);
    assert!(!limits.allows(0) && !limits.in_nodemask(0) && !limits.must_restart(Look::NoPage));
    let outcome = limits.tally.outcome(Err(AllocError::OutOfMemory));
    assert_eq!((outcome.tries, outcome.abandoned), (3, true));
}

/// What readers of a task's and a VMA's policy see after each update is what the policy has become.
fn follows<R: Rules>() {
    for flag in [Nodes::Remapped, Nodes::Static, Nodes::Relative] {
        let policy = Policy { flag, ..Policy::bind(mask(0b0110)) };
        for (first, second) in small().flat_map(|first| small().map(move |to| (first, to))) {
            let task = task(mask(0b1111), policy, policy);
            let mut expected = Mempolicy::new(policy, mask(0b1111)).expect("it has nodes");
            for mems in [first, second] {
                task.set_mems::<R>(mems, None);
                task.rebind_vmas::<R>(mems, None);
                if R::REBINDS || flag == Nodes::Relative {
                    expected = expected.rebound(mems);
                }
                for slot in [&task.policy, &task.vmas[0]] {
                    assert_eq!(slot.mempolicy(), expected);
                    assert_eq!(slot.nodes.load(Ordering::Relaxed), expected.nodes);
                }
                assert_eq!(task.mems.load(Ordering::Relaxed), mems);
            }
        }
    }
}

#[test]
fn policies_follow_every_two_updates() {
    follows::<Overwrite>();
    follows::<TwoStep>();
    follows::<IntersectionCheck>();
    follows::<NoRebind>();
}

#[test]
fn atomic_allocation_leaves_its_cpuset() {
    let zone = |node: u8| crate::page_alloc::ZoneLayout {
        node,
        kind: crate::page_alloc::ZoneType::Movable,
        sections: core::iter::once(usize::from(node)..usize::from(node) + 1).collect(),
    };
    let geometry = crate::page_alloc::Geometry::TINY;
    let flat = crate::page_alloc::Layout::flat(geometry, 1, 2);
    let mm = Mm::new(&crate::page_alloc::Layout { zones: vec![zone(0), zone(1)], ..flat });
    let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![] };
    let setup = Setup { cpusets: vec![mask(0b1)], tasks: vec![task], ..Setup::default() };
    let placement = InPlace::<CheckAtRetry>::new(&setup).expect("it has nodes");
    let node = |order, atomic| {
        let request = AllocRequest { atomic, ..AllocRequest::movable(order) };
        let ask = Ask { task: TaskId(0), vma: None, cpu: 0, request, most_tries: 9 };
        let page = placement.alloc(&mm, &ask).page.ok()?;
        mm.zone_of(page).map(|zone| zone.0)
    };
    // All of the cpuset's node, and then what it may use only if it may not wait.
    assert_eq!((node(3, false), node(0, false), node(0, true)), (Some(0), None, Some(1)));
}
