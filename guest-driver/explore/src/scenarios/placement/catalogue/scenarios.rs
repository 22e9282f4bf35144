// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scenarios.

use guest_driver::placement::{Mode, Nodes};

use super::super::setting::{Asked, Scenario};

const fn bind(nodes: &'static [u8]) -> Asked {
    Asked(Mode::Bind, Nodes::Remapped, nodes)
}

/// Two tasks without a policy, whose cpuset goes back and forth between two nodes.
pub(super) const FLIP: Scenario = Scenario {
    name: "flip",
    nodes: &[0, 1],
    full: &[],
    local: 0,
    mems: &[0],
    updates: &[&[1], &[0]],
    tasks: 2,
    pages: 2,
    policy: Asked::DEFAULT,
    vma: None,
    mbind: &[],
    reclaims: false,
    reclaim_allocates: false,
    strict: false,
    fills_left: false,
    lacks_memory: false,
};

/// The same, and the tasks are bound to the node.
pub(super) const BOUND_FLIP: Scenario = Scenario { name: "bound-flip", policy: bind(&[0]), ..FLIP };

/// The same, and a part of their address space is.
pub(super) const VMA_FLIP: Scenario = Scenario { name: "vma-flip", vma: Some(bind(&[0])), ..FLIP };

/// One node of two stays in the cpuset, and the VMA is bound to the one that goes.
pub(super) const OVERLAP: Scenario = Scenario {
    name: "overlap",
    nodes: &[0, 1, 2],
    mems: &[0, 1],
    updates: &[&[1, 2], &[0, 1]],
    vma: Some(bind(&[0])),
    ..FLIP
};

/// The nodes of old and new cpuset are in different words.
pub(super) const TWO_WORDS: Scenario =
    Scenario { name: "two-words", nodes: &[1, 64], mems: &[1], updates: &[&[64]], ..FLIP };

/// The same, back and forth, and bound.
pub(super) const BOUND_TWO_WORDS: Scenario =
    Scenario { name: "bound-two-words", updates: &[&[64], &[1]], policy: bind(&[1]), ..TWO_WORDS };

/// The nodes stay in a word: as `TWO_WORDS` otherwise.
pub(super) const ONE_WORD: Scenario =
    Scenario { name: "one-word", nodes: &[1, 63], updates: &[&[63]], ..TWO_WORDS };

/// The bound node is the second of two.
pub(super) const PAIRS: Scenario = Scenario {
    name: "pairs",
    nodes: &[0, 1, 2, 3],
    mems: &[0, 1],
    updates: &[&[2, 3], &[0, 1]],
    policy: bind(&[1]),
    ..FLIP
};

/// At first the cpuset has no node of the policy's, and then it has again.
pub(super) const COMES_BACK: Scenario =
    Scenario { name: "comes-back", tasks: 1, updates: &[&[2, 3], &[0, 1]], ..PAIRS };

/// A static policy gets its other node back, which has memory. The first has none, and is the only one as
/// long as the cpuset has no other.
pub(super) const FULL_NODE: Scenario = Scenario {
    name: "full-node",
    full: &[1],
    mems: &[1],
    updates: &[&[0, 1]],
    tasks: 1,
    pages: 1,
    policy: Asked(Mode::Bind, Nodes::Static, &[0, 1]),
    reclaims: true,
    ..FLIP
};

/// Interleaved pages.
pub(super) const INTERLEAVED: Scenario = Scenario {
    name: "interleaved",
    policy: Asked(Mode::Interleave, Nodes::Remapped, &[0, 1]),
    ..PAIRS
};

/// Relative policies of three cpusets of different sizes.
pub(super) const RELATIVE: Scenario = Scenario {
    name: "relative",
    nodes: &[0, 1, 2],
    mems: &[0, 1],
    updates: &[&[2], &[1, 2], &[0, 1]],
    policy: Asked(Mode::Bind, Nodes::Relative, &[1]),
    ..FLIP
};

/// A preferred node, and one that is not always allowed.
pub(super) const PREFERRED: Scenario =
    Scenario { name: "preferred", policy: Asked(Mode::Preferred, Nodes::Remapped, &[0]), ..FLIP };

/// Another thread gives the VMA of the first task other policies.
pub(super) const MBIND: Scenario =
    Scenario { name: "mbind", mbind: &[bind(&[1]), bind(&[0, 1, 2])], tasks: 1, ..OVERLAP };

/// A VMA is bound to the second node of two, and must get no page of the first.
pub(super) const VMA_PAIRS: Scenario = Scenario {
    name: "vma-pairs",
    tasks: 1,
    policy: Asked::DEFAULT,
    vma: Some(bind(&[1])),
    strict: true,
    ..PAIRS
};

/// Others take all memory of a node once the cpuset has left it.
pub(super) const LEFT_NODE: Scenario =
    Scenario { name: "left-node", updates: &[&[1]], fills_left: true, ..FLIP };

/// The same for a VMA that is bound.
pub(super) const LEFT_VMA: Scenario =
    Scenario { name: "left-vma", vma: Some(bind(&[0])), ..LEFT_NODE };

/// Updates lack memory, with two policies to be replaced.
pub(super) const NO_MEMORY: Scenario = Scenario {
    name: "no-memory",
    updates: &[&[2, 3], &[0, 1], &[2, 3]],
    vma: Some(bind(&[0])),
    tasks: 1,
    lacks_memory: true,
    ..PAIRS
};

/// An update after the other, beside one task.
pub(super) const UPDATES: Scenario = Scenario {
    name: "updates",
    updates: &[&[1], &[0], &[1], &[0]],
    tasks: 1,
    pages: 3,
    ..BOUND_FLIP
};

/// Update after update, beside one task that looks for memory where there is none, and holds for long what
/// says where it may look.
pub(super) const MANY_UPDATES: Scenario = Scenario {
    name: "many-updates",
    updates: &[&[1], &[0], &[1], &[0], &[1], &[0], &[1], &[0], &[1], &[0], &[1], &[0]],
    full: &[0, 1],
    tasks: 1,
    pages: 4,
    ..FLIP
};

/// A task reclaims, since there is no memory, and allocates for that, while its cpuset changes.
pub(super) const RECLAIM: Scenario = Scenario {
    name: "reclaim",
    full: &[0, 1],
    updates: &[&[1], &[0], &[1]],
    tasks: 1,
    reclaim_allocates: true,
    ..FLIP
};

/// Those that every scheme that is meant to work must stand.
pub(super) const ALL: [Scenario; 12] = [
    FLIP,
    BOUND_FLIP,
    VMA_FLIP,
    OVERLAP,
    TWO_WORDS,
    BOUND_TWO_WORDS,
    PAIRS,
    FULL_NODE,
    INTERLEAVED,
    RELATIVE,
    PREFERRED,
    MBIND,
];
