// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is swapped: the nodes of a cpuset, or a policy.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::super::policy::{Mempolicy, Mode, Nodes, Policy};
use crate::page_alloc::NodeMask;
use crate::swapped::{Handle, NoMemory, Slots, Supply};
use crate::sync::Plain;

/// Memory for one copy. What it holds changes only while no pointer leads there.
#[derive(Debug)]
pub struct NodesCopy {
    mode: AtomicU8,
    words: [AtomicU64; 2],
    /// All of it, for those that compute the next one.
    whole: Plain<Mempolicy>,
}

const MODES: [Mode; 4] = [Mode::Default, Mode::Bind, Mode::Preferred, Mode::Interleave];

impl NodesCopy {
    /// One that holds nothing yet.
    pub(crate) fn empty() -> Self {
        Self {
            mode: AtomicU8::new(0),
            words: NodeMask::EMPTY.words().map(AtomicU64::new),
            whole: Plain::new(of_cpuset(NodeMask::EMPTY)),
        }
    }

    fn fill(&self, whole: Mempolicy) {
        let mode = MODES.iter().position(|&mode| mode == whole.policy.mode);
        self.mode
            .store(mode.and_then(|mode| u8::try_from(mode).ok()).unwrap_or(0), Ordering::Relaxed);
        // Static nodes stay as they are, and readers leave out those that the cpuset has not.
        let follows = whole.policy.flag != Nodes::Static || whole.policy.mode == Mode::Default;
        let nodes = if follows { whole.nodes } else { whole.policy.nodes };
        for (word, value) in self.words.iter().zip(nodes.words()) {
            word.store(value, Ordering::Relaxed);
        }
        *self.whole.lock() = whole;
    }

    pub(crate) fn mode(&self) -> Mode {
        MODES[usize::from(self.mode.load(Ordering::Relaxed)) % MODES.len()]
    }

    pub(crate) fn nodes(&self) -> NodeMask {
        NodeMask::from_words(self.words.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    pub(crate) fn whole(&self) -> Mempolicy {
        *self.whole.lock()
    }
}

/// The nodes of a cpuset as a copy has them.
pub(crate) fn of_cpuset(mems: NodeMask) -> Mempolicy {
    Mempolicy { policy: Policy::DEFAULT, cpuset_mems: mems, nodes: mems }
}

/// Allocates a copy.
pub(crate) fn allocate(
    slots: &Slots<NodesCopy>,
    supply: &Supply,
    whole: Mempolicy,
) -> Result<Handle, NoMemory> {
    slots.allocate(supply, |copy| copy.fill(whole))
}

/// Whether a policy of this kind must be replaced when the cpuset changes.
pub(crate) fn follows_the_cpuset(policy: Policy) -> bool {
    matches!(policy.mode, Mode::Bind | Mode::Interleave) && policy.flag != Nodes::Static
}
