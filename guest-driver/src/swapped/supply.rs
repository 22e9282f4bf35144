// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory for what an update must allocate, which can be lacking at every allocation.

use core::sync::atomic::{AtomicU64, Ordering};

/// An update cannot have the memory for its copies (`-ENOMEM`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a copy")]
pub struct NoMemory;

const NEVER: u64 = u64::MAX;

/// Counts allocations, and fails some of them.
///
/// ```
/// use guest_driver::swapped::{NoMemory, Supply};
///
/// let supply = Supply::new();
/// supply.fail_after(1);
/// assert_eq!([supply.take(), supply.take(), supply.take()], [Ok(()), Err(NoMemory), Ok(())]);
/// assert_eq!(supply.taken(), 2);
/// ```
#[derive(Debug)]
pub struct Supply {
    taken: AtomicU64,
    /// Allocations that succeed before the others fail.
    left: AtomicU64,
    /// Allocations that fail then; after them all succeed.
    failing: AtomicU64,
}

impl Default for Supply {
    fn default() -> Self {
        Self::new()
    }
}

impl Supply {
    /// One that never fails.
    pub const fn new() -> Self {
        Self { taken: AtomicU64::new(0), left: AtomicU64::new(NEVER), failing: AtomicU64::new(0) }
    }

    /// Lets `count` allocations succeed, then fails one.
    pub fn fail_after(&self, count: u64) {
        self.fail(count, 1);
    }

    /// Lets `count` allocations succeed, then fails `failing`.
    pub fn fail(&self, count: u64, failing: u64) {
        self.failing.store(failing, Ordering::Relaxed);
        self.left.store(count, Ordering::Relaxed);
    }

    /// One allocation.
    ///
    /// # Errors
    /// [`NoMemory`], if it is one that fails.
    pub fn take(&self) -> Result<(), NoMemory> {
        let less = |left: u64| (left != NEVER && left > 0).then(|| left - 1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) == Err(0) {
            let fails = self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            if fails.is_ok() {
                return Err(NoMemory);
            }
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Allocations that succeeded.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}
