// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How many atomic operations some code makes.
//!
//! A time depends on the machine and its neighbors; a count does not. What is counted is what the code
//! asks for, by the primitives of `sync`: a processor may give more than that. An atomic of `core` is not
//! counted unless it is used by way of `Point`.

use core::cell::Cell;
use core::ops::Sub;
use core::sync::atomic::Ordering;

/// Atomic operations by kind. Orderings are counted beside the operations that have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Loads.
    pub loads: u64,
    /// Stores.
    pub stores: u64,
    /// Read-modify-writes, compare-and-exchange among them, whether it succeeds or not.
    pub rmws: u64,
    /// Operations and fences with the ordering acquire or a stronger one: a barrier where loads may pass
    /// each other, as on arm64, and nothing on x86-64.
    pub acquires: u64,
    /// Operations and fences with the ordering release or a stronger one: likewise.
    pub releases: u64,
    /// Stores and fences that are sequentially consistent: a full barrier, also on x86-64.
    pub full_barriers: u64,
    /// Locks taken. The read-modify-write and the store of each, and their orderings, are not counted
    /// again.
    pub locks: u64,
}

impl Cost {
    /// Names of the fields, in the order of [`Cost::values`].
    pub const NAMES: [&'static str; 7] =
        ["loads", "stores", "rmws", "acquires", "releases", "full-barriers", "locks"];

    /// The fields.
    pub fn values(&self) -> [u64; 7] {
        let Self { loads, stores, rmws, acquires, releases, full_barriers, locks } = *self;
        [loads, stores, rmws, acquires, releases, full_barriers, locks]
    }
}

/// What has been added since an earlier look.
impl Sub for Cost {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            loads: self.loads - earlier.loads,
            stores: self.stores - earlier.stores,
            rmws: self.rmws - earlier.rmws,
            acquires: self.acquires - earlier.acquires,
            releases: self.releases - earlier.releases,
            full_barriers: self.full_barriers - earlier.full_barriers,
            locks: self.locks - earlier.locks,
        }
    }
}

std::thread_local! {
    /// Of this thread of the machine: all threads of a run under shuttle share one.
    static SPENT: Cell<Cost> = const { Cell::new(Cost {
        loads: 0, stores: 0, rmws: 0, acquires: 0, releases: 0, full_barriers: 0, locks: 0,
    }) };
}

/// Runs `code` and counts its atomic operations, and those of every thread of shuttle that runs
/// meanwhile.
pub fn cost_of<R>(code: impl FnOnce() -> R) -> (R, Cost) {
    let before = SPENT.get();
    let result = code();
    (result, SPENT.get() - before)
}

fn spend(on: impl FnOnce(&mut Cost)) {
    let mut spent = SPENT.get();
    on(&mut spent);
    SPENT.set(spent);
}

fn acquires(order: Ordering) -> u64 {
    u64::from(matches!(order, Ordering::Acquire | Ordering::AcqRel | Ordering::SeqCst))
}

fn releases(order: Ordering) -> u64 {
    u64::from(matches!(order, Ordering::Release | Ordering::AcqRel | Ordering::SeqCst))
}

pub(super) fn load(order: Ordering) {
    spend(|cost| {
        cost.loads += 1;
        cost.acquires += acquires(order);
    });
}

pub(super) fn store(order: Ordering) {
    spend(|cost| {
        cost.stores += 1;
        cost.releases += releases(order);
        cost.full_barriers += u64::from(order == Ordering::SeqCst);
    });
}

pub(super) fn rmw(order: Ordering) {
    spend(|cost| {
        cost.rmws += 1;
        cost.acquires += acquires(order);
        cost.releases += releases(order);
    });
}

pub(super) fn fence(order: Ordering) {
    spend(|cost| {
        cost.acquires += acquires(order);
        cost.releases += releases(order);
        cost.full_barriers += u64::from(order == Ordering::SeqCst);
    });
}

pub(super) fn lock() {
    spend(|cost| cost.locks += 1);
}
