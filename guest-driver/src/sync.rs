// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The primitives whose order the model's correctness rests on.
//!
//! With the feature `shuttle` they are shuttle's, which puts a scheduling point before each use, so
//! that an exploration owns every interleaving; otherwise they are the real ones. What is only
//! touched under a lock uses `core`'s atomics directly and is no scheduling point.

#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};

#[cfg(not(feature = "shuttle"))]
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};

pub use core::sync::atomic::Ordering;

#[cfg(feature = "shuttle")]
use shuttle::sync as imp;
#[cfg(not(feature = "shuttle"))]
use std::sync as imp;

/// A lock's guard.
pub type Guard<'a, T> = imp::MutexGuard<'a, T>;

/// A lock that a panicking holder does not poison: the panic is what ends the run.
///
/// It and what it guards have cache lines of their own, two since processors fetch pairs: the lock
/// of one CPU's lists must not slow down another CPU that takes its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Lock<T>(imp::Mutex<T>);

impl<T> Lock<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Lets others run: a scheduling point where there is no shared access to be one.
pub fn yield_now() {
    #[cfg(feature = "shuttle")]
    shuttle::thread::yield_now();
    #[cfg(not(feature = "shuttle"))]
    std::thread::yield_now();
}
