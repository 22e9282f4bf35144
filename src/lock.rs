// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Locks whose holders leave nothing half done, and the atomics beside them.
//!
//! What two threads share in an order that matters takes them from here: the package
//! `tests/interleavings` has others in their place.

pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
pub(crate) use std::thread::yield_now;

/// Waits for `mutex`. A holder that panicked does not matter: no lock of the daemon guards data that
/// is inconsistent between two statements, and a panic ends the process anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
