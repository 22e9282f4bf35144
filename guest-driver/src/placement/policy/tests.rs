// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How policies follow cpusets, over every set of a few nodes.

use super::*;
use alloc::vec::Vec;

fn mask(word: u64) -> NodeMask {
    NodeMask::from_words([word, 0])
}

fn small() -> impl Iterator<Item = NodeMask> + Clone {
    (1..16).map(mask)
}

fn policy(mode: Mode, flag: Nodes, nodes: NodeMask) -> Policy {
    Policy { mode, flag, nodes }
}

/// Every policy that binds or interleaves, in every cpuset that it can be set in.
fn settable(flag: Nodes) -> Vec<Mempolicy> {
    let all = [Mode::Bind, Mode::Interleave].into_iter().flat_map(|mode| {
        small().flat_map(move |nodes| {
            small().filter_map(move |mems| Mempolicy::new(policy(mode, flag, nodes), mems))
        })
    });
    all.collect()
}

#[test]
fn policy_there_and_back_is_the_same() {
    for flag in [Nodes::Remapped, Nodes::Static, Nodes::Relative] {
        for first in settable(flag) {
            let mems = first.cpuset_mems;
            // Sets of other sizes lose which of their nodes was which, unless the user's nodes are kept.
            let keeps = flag != Nodes::Remapped;
            for other in small().filter(|other| keeps || other.count() == mems.count()) {
                assert_eq!(first.rebound(other).rebound(mems), first, "by way of {other:?}");
            }
        }
    }
}

#[test]
fn policy_never_becomes_empty() {
    for flag in [Nodes::Remapped, Nodes::Static, Nodes::Relative] {
        for first in settable(flag) {
            for mems in small() {
                let rebound = first.rebound(mems);
                assert!(!rebound.nodes.is_empty() && rebound.nodes.is_subset(mems));
                let both = first.policy.nodes.intersection(mems);
                match flag {
                    Nodes::Static if both.is_empty() => assert_eq!(rebound.nodes, mems),
                    Nodes::Static => assert_eq!(rebound.nodes, both),
                    Nodes::Relative => {
                        assert_eq!(rebound.nodes, relative(first.policy.nodes, mems));
                    }
                    Nodes::Remapped => assert_eq!(rebound.cpuset_mems, mems),
                }
            }
        }
    }
}

/// 2017 to 2019: the second rebinding counts the nodes of the first's result, not of the cpuset.
#[test]
fn policy_that_remembers_itself_collapses() {
    let first = Mempolicy::new(Policy::bind(mask(0b10)), mask(0b11)).unwrap();
    let there_and_back = |flaw| {
        let there = first.rebound_with(mask(0b1100), flaw);
        assert_eq!(there.nodes, mask(0b1000));
        there.rebound_with(mask(0b11), flaw).nodes
    };
    assert_eq!(there_and_back(None), mask(0b10));
    assert_eq!(there_and_back(Some(Flaw::RemembersPolicyNodes)), mask(0b01));
}

#[test]
fn preferred_node_stays_through_rebinding() {
    let nodes = mask(0b110);
    for flag in [Nodes::Remapped, Nodes::Static, Nodes::Relative] {
        let first = Mempolicy::new(policy(Mode::Preferred, flag, nodes), mask(0b1111)).unwrap();
        assert_eq!(first.nodes, mask(0b010));
        let rebound = first.rebound(mask(0b1000));
        assert_eq!((rebound.nodes, rebound.cpuset_mems), (mask(0b010), mask(0b1000)));
    }
}

#[test]
fn policy_without_nodes_is_refused() {
    let set = |mode, nodes, mems| Mempolicy::new(policy(mode, Nodes::Remapped, nodes), mems);
    for mode in [Mode::Bind, Mode::Preferred, Mode::Interleave] {
        assert_eq!(set(mode, NodeMask::EMPTY, mask(1)), None);
        assert_eq!(set(mode, mask(0b10), mask(0b01)), None);
        assert_eq!(set(mode, mask(0b110), mask(0b010)).map(|set| set.nodes), Some(mask(0b010)));
    }
    let default = set(Mode::Default, mask(0b10), mask(0b01)).unwrap();
    assert_eq!(default.rebound(mask(0b10)).nodes, NodeMask::EMPTY);
}

#[test]
fn default_policy_follows_nothing() {
    let default = Mempolicy::new(Policy::DEFAULT, mask(1)).unwrap();
    assert_eq!(default.rebound(mask(2)), default);
}
