// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Locks whose holders leave nothing half done.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits for `mutex`. A holder that panicked does not matter: no lock of the daemon guards data that
/// is inconsistent between two statements, and a panic ends the process anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
