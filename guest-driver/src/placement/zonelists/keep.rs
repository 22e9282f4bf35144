// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What keeps a set of zonelists while an allocation walks it: a count in the set, or a lock of the cpuset.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::set::ZonelistSet;
use crate::swapped::{Counts, Grace, Handle, Pointer, RwSem, Slots};
use crate::waits::{Party, Waits};

/// A cpuset.
#[derive(Debug)]
pub struct Cpuset {
    /// Its zonelists.
    pub(super) set: Pointer,
    pub(super) lock: RwSem,
}

impl Cpuset {
    pub(super) fn new(set: Handle, watch: Option<&Watch>, index: usize) -> Self {
        let lock = watch.map_or_else(RwSem::new, |watch| {
            RwSem::watched(Arc::clone(&watch.waits), &format!("the zonelists of cpuset {index}"))
        });
        Self { set: Pointer::new(Some(set)), lock }
    }
}

/// Who waits for whom, where that is watched.
#[derive(Debug)]
pub(super) struct Watch {
    waits: Arc<Waits>,
    tasks: Vec<Party>,
    writer: Party,
}

impl Watch {
    pub(super) fn new(tasks: usize) -> Self {
        let waits = Arc::new(Waits::new());
        let tasks = (0..tasks).map(|task| waits.party(format!("task {task}"))).collect();
        let writer = waits.party("the writer");
        Self { waits, tasks, writer }
    }

    pub(super) fn task(&self, task: usize) -> Option<Party> {
        self.tasks.get(task).copied()
    }

    pub(super) fn writer(&self) -> Party {
        self.writer
    }
}

/// What keeps a set.
pub trait Keep: Send + Sync {
    /// A set that is held cannot be swapped, so nobody sleeps for long with it.
    const LOCKS: bool;

    /// Holds the current set.
    fn hold(&self, sets: &Slots<ZonelistSet>, cpuset: &Cpuset, by: Option<Party>)
    -> Option<Handle>;

    /// Holds it no longer.
    fn release(&self, sets: &Slots<ZonelistSet>, cpuset: &Cpuset, set: Handle, by: Option<Party>);

    /// Swaps another set in, and lets the one of before go.
    fn swap(&self, sets: &Slots<ZonelistSet>, cpuset: &Cpuset, next: Handle, by: Option<Party>);
}

impl Keep for Counts {
    const LOCKS: bool = false;

    fn hold(&self, sets: &Slots<ZonelistSet>, cpuset: &Cpuset, _: Option<Party>) -> Option<Handle> {
        Grace::hold(self, sets, &cpuset.set)
    }

    fn release(&self, sets: &Slots<ZonelistSet>, _: &Cpuset, set: Handle, _: Option<Party>) {
        Grace::release(self, sets, set);
    }

    fn swap(&self, sets: &Slots<ZonelistSet>, cpuset: &Cpuset, next: Handle, _: Option<Party>) {
        if let Some(old) = cpuset.set.swap(Some(next)) {
            self.retire(sets, old);
        }
    }
}

/// The cpuset's lock: shared to walk its zonelists, alone to swap them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByLock;

impl Keep for ByLock {
    const LOCKS: bool = true;

    fn hold(&self, _: &Slots<ZonelistSet>, cpuset: &Cpuset, by: Option<Party>) -> Option<Handle> {
        cpuset.lock.read(by);
        cpuset.set.load()
    }

    fn release(&self, _: &Slots<ZonelistSet>, cpuset: &Cpuset, _: Handle, by: Option<Party>) {
        cpuset.lock.read_done(by);
    }

    fn swap(&self, sets: &Slots<ZonelistSet>, cpuset: &Cpuset, next: Handle, by: Option<Party>) {
        cpuset.lock.write(by);
        let old = cpuset.set.swap(Some(next));
        cpuset.lock.write_done(by);
        old.into_iter().for_each(|old| sets.free(old));
    }
}
