// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A copy of what other threads change.

use crate::lock::{Mutex, MutexGuard, lock};

/// What follows an original, one look after another.
#[derive(Debug, Default)]
pub(crate) struct InTurn<T>(Mutex<T>);

impl<T> InTurn<T> {
    pub(crate) fn new(copy: T) -> Self {
        Self(Mutex::new(copy))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        lock(&self.0)
    }

    /// Has the copy follow a `look` at the original. The look is in turn, too, so that an older one never
    /// replaces a later one.
    pub(crate) fn follow<L>(&self, look: impl FnOnce() -> L, keep: impl FnOnce(&mut T, L)) {
        let mut copy = self.lock();
        let seen = look();
        keep(&mut copy, seen);
    }
}
