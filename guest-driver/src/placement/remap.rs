// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How node numbers of one set become those of another (`bitmap_remap`, `bitmap_fold`, `bitmap_onto`).

use crate::page_alloc::NodeMask;

/// Replaces each node of `nodes` that is the nth of `old` by the nth of `new`, counted modulo the nodes
/// of `new` (`nodes_remap`). A node that is not in `old` stays, as all do if `new` is empty.
pub fn remap(nodes: NodeMask, old: NodeMask, new: NodeMask) -> NodeMask {
    let count = new.iter().count();
    let one = |node: u8| match old.iter().position(|other| other == node) {
        Some(nth) if count > 0 => new.nth(nth % count).unwrap_or(node),
        _ => node,
    };
    nodes.iter().map(one).collect()
}

/// The nodes modulo `count` (`nodes_fold`); none if `count` is 0.
pub fn fold(nodes: NodeMask, count: u8) -> NodeMask {
    nodes.iter().filter_map(|node| node.checked_rem(count)).collect()
}

/// The nth node of `relative` for each n in `nodes` (`nodes_onto`).
pub fn onto(nodes: NodeMask, relative: NodeMask) -> NodeMask {
    nodes.iter().filter_map(|nth| relative.nth(usize::from(nth))).collect()
}

/// What `nodes` mean relative to `allowed`: folded to as many as it has, then the nth of them
/// (`mpol_relative_nodemask`).
pub fn relative(nodes: NodeMask, allowed: NodeMask) -> NodeMask {
    let count = u8::try_from(allowed.count()).unwrap_or(u8::MAX);
    onto(fold(nodes, count), allowed)
}

#[cfg(test)]
mod tests;
