// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A task: its nodes, its policies, and how they are changed where readers look.

use core::sync::atomic::{AtomicU8, AtomicUsize};

use alloc::boxed::Box;

use super::super::policy::{Mempolicy, Mode, Nodes, Policy};
use super::super::protocol::{CpusetId, TaskSetup, UpdateError};
use super::super::scheme::Flaw;
use super::super::sequence::SeqCount;
use super::rules::{Rules, Sequence};
use crate::page_alloc::{AtomicNodeMask, NodeMask};
use crate::sync::{Lock, Ordering, Plain, RwLock};

/// A task.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) cpuset: CpusetId,
    /// Under `lock` (`task_lock`), and read without.
    pub(super) mems: AtomicNodeMask,
    pub(super) sequence: SeqCount,
    pub(super) policy: Slot,
    pub(super) vmas: Box<[Slot]>,
    /// Held to allocate for a VMA, and by one alone to change its policy (`mmap_lock`).
    pub(super) mmap: RwLock<()>,
    lock: Lock<()>,
    /// The node after which the next of an interleaved policy is taken (`il_prev`).
    previous: AtomicU8,
}

impl Task {
    /// A task whose cpuset has the nodes `mems`.
    pub(super) fn new(setup: &TaskSetup, mems: NodeMask) -> Result<Self, UpdateError> {
        let vmas: Result<_, _> = setup.vmas.iter().map(|&policy| Slot::new(policy, mems)).collect();
        Ok(Self {
            cpuset: setup.cpuset,
            mems: AtomicNodeMask::new(mems),
            sequence: SeqCount::default(),
            policy: Slot::new(setup.policy, mems)?,
            vmas: vmas?,
            mmap: RwLock::default(),
            lock: Lock::default(),
            previous: AtomicU8::new(NodeMask::NODES - 1),
        })
    }

    /// Bytes of its nodes, its sequence count and its policies.
    pub(super) fn bytes(&self) -> usize {
        let policies = (1 + self.vmas.len()) * size_of::<Slot>();
        size_of_val(&self.mems) + size_of_val(&self.sequence) + policies
    }

    /// Gives the task and its policy the nodes `mems` (`cpuset_change_task_nodemask`).
    pub(super) fn set_mems<R: Rules>(&self, mems: NodeMask, flaw: Option<Flaw>) {
        let _locked = self.lock.lock();
        let old = self.mems.load(Ordering::Relaxed);
        let change = || {
            if R::ADDS_FIRST {
                self.mems.store(old.union(mems), Ordering::Relaxed);
            }
            self.policy.rebind::<R>(mems, flaw, R::TWO_STEPS);
            self.mems.store(mems, Ordering::Relaxed);
        };
        let changes = match R::SEQUENCE {
            Sequence::Never => false,
            Sequence::WhereNeeded => !self.policy.is_default() || !old.intersects(mems),
            Sequence::Always => true,
        };
        if changes { self.sequence.write(change) } else { change() }
    }

    /// Lets the policies of all VMAs follow the cpuset (`mpol_rebind_mm`).
    pub(super) fn rebind_vmas<R: Rules>(&self, mems: NodeMask, flaw: Option<Flaw>) {
        let _alone = self.mmap.write();
        self.vmas.iter().for_each(|slot| slot.rebind::<R>(mems, flaw, false));
    }

    /// The policy of the task, set by itself.
    pub(super) fn set_policy(&self, policy: Policy) -> Result<(), UpdateError> {
        let _locked = self.lock.lock();
        self.policy.set(policy, self.mems.load(Ordering::Relaxed))
    }

    /// The policy of a VMA.
    pub(super) fn mbind(&self, vma: usize, policy: Policy) -> Result<(), UpdateError> {
        let _alone = self.mmap.write();
        let mems = {
            let _locked = self.lock.lock();
            self.mems.load(Ordering::Relaxed)
        };
        self.vmas[vma].set(policy, mems)
    }

    /// The next node of an interleaved policy (`interleave_nodes`).
    pub(super) fn next_interleaved<R: Rules>(&self, slot: &Slot) -> Option<u8> {
        let previous = self.previous.load(Ordering::Relaxed);
        let next = loop {
            let begun = (R::SEQUENCE != Sequence::Never).then(|| self.sequence.read_begin());
            let nodes = slot.nodes.load(Ordering::Relaxed);
            let after = nodes.iter().find(|&node| node > previous);
            if !begun.is_some_and(|begun| self.sequence.read_retry(begun)) {
                break after.or(nodes.first());
            }
        }?;
        self.previous.store(next, Ordering::Relaxed);
        Some(next)
    }
}

/// A place for a policy. Readers look at its mode and nodes, and nothing keeps others from changing them
/// meanwhile.
#[derive(Debug)]
pub(super) struct Slot {
    mode: AtomicU8,
    pub(super) nodes: AtomicNodeMask,
    /// All of it, for those that change it: one at a time.
    whole: Plain<Mempolicy>,
    /// Pages that were allocated by it, while it is interleaved and a VMA's.
    pages: AtomicUsize,
}

const MODES: [Mode; 4] = [Mode::Default, Mode::Bind, Mode::Preferred, Mode::Interleave];

fn number(mode: Mode) -> u8 {
    match mode {
        Mode::Default => 0,
        Mode::Bind => 1,
        Mode::Preferred => 2,
        Mode::Interleave => 3,
    }
}

impl Slot {
    fn new(policy: Policy, mems: NodeMask) -> Result<Self, UpdateError> {
        let whole = Mempolicy::new(policy, mems).ok_or(UpdateError::NoNodes)?;
        Ok(Self {
            mode: AtomicU8::new(number(policy.mode)),
            nodes: AtomicNodeMask::new(whole.nodes),
            whole: Plain::new(whole),
            pages: AtomicUsize::new(0),
        })
    }

    pub(super) fn mode(&self) -> Mode {
        MODES[usize::from(self.mode.load(Ordering::Relaxed)) % MODES.len()]
    }

    pub(super) fn is_default(&self) -> bool {
        self.mode() == Mode::Default
    }

    pub(super) fn mempolicy(&self) -> Mempolicy {
        *self.whole.lock()
    }

    /// Replaces the policy. No reader is using it: a task sets its own, and a VMA's is set with the
    /// VMA's lock held alone.
    fn set(&self, policy: Policy, mems: NodeMask) -> Result<(), UpdateError> {
        let whole = Mempolicy::new(policy, mems).ok_or(UpdateError::NoNodes)?;
        *self.whole.lock() = whole;
        self.mode.store(number(policy.mode), Ordering::Relaxed);
        self.nodes.store(whole.nodes, Ordering::Relaxed);
        Ok(())
    }

    /// Lets the policy follow the cpuset (`mpol_rebind_policy`).
    fn rebind<R: Rules>(&self, mems: NodeMask, flaw: Option<Flaw>, two_steps: bool) {
        let old = self.mempolicy();
        if !R::REBINDS && old.policy.flag != Nodes::Relative {
            return;
        }
        let new = old.rebound_with(mems, flaw);
        *self.whole.lock() = new;
        if new.nodes == old.nodes {
            return;
        }
        if two_steps {
            self.nodes.store(old.nodes.union(new.nodes), Ordering::Relaxed);
        }
        self.nodes.store(new.nodes, Ordering::Relaxed);
    }

    /// The node of the next page of an interleaved VMA, whose pages are touched in order
    /// (`interleave_nid`).
    pub(super) fn interleaved(&self) -> Option<u8> {
        let nodes = self.nodes.load(Ordering::Relaxed);
        let page = self.pages.fetch_add(1, Ordering::Relaxed);
        page.checked_rem(nodes.iter().count()).and_then(|nth| nodes.nth(nth))
    }
}
