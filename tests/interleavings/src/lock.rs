// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `src/lock.rs` of the daemon, over loom.

pub(crate) use std::sync::PoisonError;

pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
pub(crate) use loom::thread::yield_now;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
