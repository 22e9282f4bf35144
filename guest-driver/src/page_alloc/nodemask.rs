// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets of NUMA nodes (`nodemask_t`).

use crate::sync::{AtomicU64, Ordering};

const WORDS: usize = 2;
const WORD_BITS: u8 = 64;

/// A set of nodes, of several words as in Linux: one that others change can be read in part
/// ([`AtomicNodeMask`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeMask([u64; WORDS]);

impl NodeMask {
    /// Nodes that there can be; a node is less than this.
    pub const NODES: u8 = 2 * WORD_BITS;
    /// No node.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every node that there can be.
    pub const ALL: Self = Self([u64::MAX; WORDS]);

    /// One node. One that cannot be is in no set.
    pub const fn of(node: u8) -> Self {
        Self::EMPTY.with(node)
    }

    /// The first `count` nodes.
    pub fn first_nodes(count: u8) -> Self {
        (0..count).collect()
    }

    /// Its words, 64 nodes each.
    pub const fn words(self) -> [u64; WORDS] {
        self.0
    }

    /// The set of these words.
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// Whether `node` is in it.
    pub const fn contains(self, node: u8) -> bool {
        node < Self::NODES && self.0[word_of(node)] & bit_of(node) != 0
    }

    /// The set with `node`.
    #[must_use]
    pub const fn with(mut self, node: u8) -> Self {
        if node < Self::NODES {
            self.0[word_of(node)] |= bit_of(node);
        }
        self
    }

    /// The set without `node`.
    #[must_use]
    pub const fn without(mut self, node: u8) -> Self {
        if node < Self::NODES {
            self.0[word_of(node)] &= !bit_of(node);
        }
        self
    }

    /// The nodes of either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        self.by_word(other, |mine, others| mine | others)
    }

    /// The nodes of both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        self.by_word(other, |mine, others| mine & others)
    }

    /// The nodes of this one only.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        self.by_word(other, |mine, others| mine & !others)
    }

    fn by_word(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self(core::array::from_fn(|word| of(self.0[word], other.0[word])))
    }

    /// Whether there is a node in both.
    pub fn intersects(self, other: Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// Whether `other` has all its nodes.
    pub fn is_subset(self, other: Self) -> bool {
        self.difference(other).is_empty()
    }

    /// Whether it has no node.
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// How many nodes it has.
    pub fn count(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Its nodes, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..Self::NODES).filter(move |&node| self.contains(node))
    }

    /// Its lowest node.
    pub fn first(self) -> Option<u8> {
        self.iter().next()
    }

    /// The node with `index` of its nodes below it.
    pub fn nth(self, index: usize) -> Option<u8> {
        self.iter().nth(index)
    }
}

impl FromIterator<u8> for NodeMask {
    fn from_iter<I: IntoIterator<Item = u8>>(nodes: I) -> Self {
        nodes.into_iter().fold(Self::EMPTY, Self::with)
    }
}

const fn word_of(node: u8) -> usize {
    (node / WORD_BITS) as usize
}

const fn bit_of(node: u8) -> u64 {
    1 << (node % WORD_BITS)
}

/// A set of nodes that some read while others change it. It is copied word by word: a reader may get
/// one word of the old set and one of the new.
#[derive(Debug, Default)]
pub struct AtomicNodeMask([AtomicU64; WORDS]);

impl AtomicNodeMask {
    /// A set that begins as `mask`.
    pub fn new(mask: NodeMask) -> Self {
        Self(mask.words().map(AtomicU64::new))
    }

    /// Reads it, word by word.
    pub fn load(&self, order: Ordering) -> NodeMask {
        NodeMask(self.0.each_ref().map(|word| word.load(order)))
    }

    /// Writes it, word by word.
    pub fn store(&self, mask: NodeMask, order: Ordering) {
        for (word, value) in self.0.iter().zip(mask.words()) {
            word.store(value, order);
        }
    }

    /// Whether `node` is in it (`node_isset`): reads one word.
    pub fn contains(&self, node: u8, order: Ordering) -> bool {
        node < NodeMask::NODES && self.0[word_of(node)].load(order) & bit_of(node) != 0
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn nodes_of_both_words_are_in_order() {
        let mask: NodeMask = [127, 64, 3, 63].into_iter().collect();
        assert_eq!(mask.iter().collect::<Vec<_>>(), vec![3, 63, 64, 127]);
        assert_eq!(
            (mask.count(), mask.first(), mask.nth(2), mask.nth(4)),
            (4, Some(3), Some(64), None)
        );
        assert_eq!(mask.words(), [1 << 63 | 1 << 3, 1 << 63 | 1]);
        assert_eq!(mask.without(64).without(3), NodeMask::of(63).union(NodeMask::of(127)));
    }

    #[test]
    fn node_that_cannot_be_is_in_no_set() {
        assert!(!NodeMask::ALL.contains(NodeMask::NODES));
        assert_eq!(NodeMask::of(u8::MAX), NodeMask::EMPTY);
        assert_eq!(NodeMask::ALL.without(200), NodeMask::ALL);
        assert!(!AtomicNodeMask::new(NodeMask::ALL).contains(NodeMask::NODES, Ordering::Relaxed));
    }

    #[test]
    fn sets_intersect_by_every_word() {
        let (low, high) = (NodeMask::first_nodes(64), NodeMask::of(64));
        assert!(!low.intersects(high) && low.union(high).intersects(high));
        assert!(low.is_subset(NodeMask::first_nodes(65)) && !low.union(high).is_subset(low));
        assert_eq!(NodeMask::ALL.difference(low).first(), Some(64));
        assert_eq!(low.intersection(high), NodeMask::EMPTY);
    }

    #[test]
    fn atomic_set_holds_what_was_stored() {
        let mask = AtomicNodeMask::new(NodeMask::of(5));
        assert!(mask.contains(5, Ordering::Relaxed) && !mask.contains(100, Ordering::Relaxed));
        mask.store(NodeMask::of(100), Ordering::Relaxed);
        assert_eq!(mask.load(Ordering::Relaxed), NodeMask::of(100));
    }
}
