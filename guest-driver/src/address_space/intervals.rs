// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An interval tree, as of the core's notifiers (`interval_tree_iter_first`).

use alloc::vec::Vec;
use core::ops::Range;

/// Ranges with a value each: a balanced tree in an array, where each node knows the largest end below it.
///
/// ```
/// use guest_driver::address_space::IntervalTree;
///
/// let mut tree = IntervalTree::new();
/// tree.insert(0..4, "low");
/// tree.insert(8..12, "high");
/// assert_eq!(tree.overlapping(&(3..8)), [&"low"]);
/// assert!(tree.overlapping(&(4..8)).is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct IntervalTree<T> {
    /// By start.
    nodes: Vec<Node<T>>,
}

#[derive(Clone, Debug)]
struct Node<T> {
    range: Range<u64>,
    /// The largest end of the subtree whose root this is.
    last: u64,
    value: T,
}

impl<T> Default for IntervalTree<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> IntervalTree<T> {
    /// Without a range.
    pub const fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// Adds a range, which may overlap others. An empty one is never found.
    pub fn insert(&mut self, range: Range<u64>, value: T) {
        let at = self.nodes.partition_point(|node| node.range.start <= range.start);
        self.nodes.insert(at, Node { last: range.end, range, value });
        refresh(&mut self.nodes);
    }

    /// The values of all ranges that overlap `range`, by start.
    pub fn overlapping(&self, range: &Range<u64>) -> Vec<&T> {
        let mut found = Vec::new();
        walk(&self.nodes, range, &mut found);
        found
    }

    /// Ranges in the tree.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

/// Computes the largest ends of a subtree again.
fn refresh<T>(nodes: &mut [Node<T>]) -> u64 {
    let middle = nodes.len() / 2;
    let (left, rest) = nodes.split_at_mut(middle);
    let Some((root, right)) = rest.split_first_mut() else { return 0 };
    root.last = root.range.end.max(refresh(left)).max(refresh(right));
    root.last
}

fn walk<'a, T>(nodes: &'a [Node<T>], range: &Range<u64>, found: &mut Vec<&'a T>) {
    let (left, rest) = nodes.split_at(nodes.len() / 2);
    let Some((root, right)) = rest.split_first() else { return };
    if root.last <= range.start {
        return;
    }
    walk(left, range, found);
    if root.range.start >= range.end {
        return;
    }
    if root.range.end > range.start && !root.range.is_empty() && !range.is_empty() {
        found.push(&root.value);
    }
    walk(right, range, found);
}
