// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An eventfd that one thread signals and another polls, as `src/wake.rs` of the daemon has it.

use crate::lock::{Condvar, Mutex, lock};

/// One listener.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Wakes {
    pub(crate) fn signal(&self) {
        *lock(&self.signalled) = true;
        self.changed.notify_all();
    }

    /// Waits for a signal and clears it.
    pub(crate) fn wait(&self) {
        let mut signalled = lock(&self.signalled);
        while !std::mem::take(&mut *signalled) {
            signalled = self.changed.wait(signalled).unwrap();
        }
    }
}
