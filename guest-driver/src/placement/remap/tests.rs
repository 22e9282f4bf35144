// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every set of a few nodes, and some that have words of their own.

use super::*;

fn mask(word: u64) -> NodeMask {
    NodeMask::from_words([word, 0])
}

/// Every set of the first five nodes.
fn small() -> impl Iterator<Item = NodeMask> + Clone {
    (0..32).map(mask)
}

#[test]
fn remap_between_sets_of_a_size_is_undone() {
    let mut seen = 0;
    for old in small() {
        for new in small().filter(|new| new.count() == old.count()) {
            for nodes in small().filter(|nodes| nodes.is_subset(old)) {
                let there = remap(nodes, old, new);
                assert!(there.is_subset(new) && there.count() == nodes.count());
                assert_eq!(remap(there, new, old), nodes, "{nodes:?} by way of {new:?}");
                seen += 1;
            }
        }
    }
    // Pairs of sets of k of 5 nodes, and the subsets of the first.
    let choices = [1, 5, 10, 10, 5, 1];
    assert_eq!(seen, choices.iter().zip(0..).map(|(c, k)| (c * c) << k).sum::<i32>());
}

#[test]
fn remap_keeps_nodes_outside_the_old_set() {
    for old in small() {
        for new in small() {
            for nodes in small() {
                let outside = nodes.difference(old);
                let remapped = remap(nodes, old, new);
                assert!(outside.is_subset(remapped));
                assert!(new.is_empty() || remapped.difference(outside).is_subset(new));
            }
        }
    }
    assert_eq!(remap(mask(0b101), mask(0b111), NodeMask::EMPTY), mask(0b101));
}

#[test]
fn remap_to_fewer_nodes_wraps() {
    // The first and third of three become the first of two.
    assert_eq!(remap(mask(0b101), mask(0b111), mask(0b11000)), mask(0b01000));
    assert_eq!(remap(mask(0b010), mask(0b111), mask(0b11000)), mask(0b10000));
}

#[test]
fn remap_goes_across_words() {
    let high: NodeMask = [64, 100].into_iter().collect();
    assert_eq!(remap(mask(0b10), mask(0b11), high), NodeMask::of(100));
    assert_eq!(remap(high, high, mask(0b11)), mask(0b11));
}

#[test]
fn fold_counts_modulo() {
    assert_eq!(fold(mask(0b10_0110), 4), mask(0b0110));
    assert_eq!(fold([64, 127].into_iter().collect(), 3), mask(0b10));
    assert_eq!(fold(mask(0b111), 0), NodeMask::EMPTY);
}

#[test]
fn onto_takes_the_nth_of_each() {
    // Nodes 30 to 39, of which bits 30, 33 and 37 are set in a map: the documentation's example in small.
    let relative: NodeMask = [3, 10, 64, 90].into_iter().collect();
    assert_eq!(onto(mask(0b1101), relative), [3, 64, 90].into_iter().collect());
    assert_eq!(onto(mask(0b1_0000), relative), NodeMask::EMPTY);
}

#[test]
fn relative_nodes_are_the_nth_of_any_set() {
    for allowed in small().filter(|allowed| !allowed.is_empty()) {
        for nodes in small() {
            let means = relative(nodes, allowed);
            assert!(means.is_subset(allowed));
            assert_eq!(means.is_empty(), nodes.is_empty());
            let expected = nodes
                .iter()
                .filter_map(|node| allowed.nth(usize::from(node) % allowed.iter().count()));
            assert_eq!(means, expected.collect());
        }
    }
    assert_eq!(relative(mask(1), NodeMask::EMPTY), NodeMask::EMPTY);
}
