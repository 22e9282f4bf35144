// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The primitives whose order the model's correctness rests on.
//!
//! With the feature `shuttle` they are shuttle's, which puts a scheduling point before each use, so
//! that an exploration owns every interleaving. Otherwise they are those of `std`, or without the
//! feature `std` locks that spin. What is only touched under a lock uses `core`'s atomics directly and
//! is no scheduling point.
//!
//! With the feature `shuttle` the operations are counted as well (`cost`).

#[cfg(feature = "shuttle")]
pub mod cost;
#[cfg(feature = "shuttle")]
mod counted;

#[cfg(feature = "shuttle")]
pub use counted::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence};

#[cfg(not(feature = "shuttle"))]
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence};

pub use core::sync::atomic::Ordering;

#[cfg(not(feature = "std"))]
use spinning as plain;
#[cfg(feature = "std")]
use std::sync as plain;

#[cfg(not(feature = "shuttle"))]
use plain as imp;
#[cfg(feature = "shuttle")]
use shuttle::sync as imp;

pub use plain::OnceLock;

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
        #[cfg(feature = "shuttle")]
        cost::lock();
        self.0.lock().unwrap_or_else(plain::PoisonError::into_inner)
    }

    /// Takes the lock unless another has it.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        #[cfg(feature = "shuttle")]
        cost::lock();
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(plain::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(plain::TryLockError::WouldBlock) => None,
        }
    }
}

/// What those wait for that need a change of what a [`Lock`] guards.
#[derive(Debug, Default)]
pub(crate) struct Changed(imp::Condvar);

impl Changed {
    /// Waits for a [`Changed::announce`]. It may return without one.
    pub(crate) fn wait<'a, T>(&self, guard: Guard<'a, T>, lock: &'a Lock<T>) -> Guard<'a, T> {
        #[cfg(feature = "std")]
        {
            let _ = lock;
            self.0.wait(guard).unwrap_or_else(plain::PoisonError::into_inner)
        }
        #[cfg(not(feature = "std"))]
        {
            drop(guard);
            self.0.wait();
            lock.lock()
        }
    }

    /// Wakes all that wait.
    pub(crate) fn announce(&self) {
        self.0.notify_all();
    }
}

/// The guard of one of those that share a lock.
pub type SharedGuard<'a, T> = imp::RwLockReadGuard<'a, T>;
/// The guard of the one that has a lock alone.
pub type AloneGuard<'a, T> = imp::RwLockWriteGuard<'a, T>;

/// A lock that several share, or one has alone (`rw_semaphore`). A panicking holder does not poison it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self(imp::RwLock::new(value))
    }

    /// Waits until it can be shared.
    pub fn read(&self) -> SharedGuard<'_, T> {
        #[cfg(feature = "shuttle")]
        cost::lock();
        self.0.read().unwrap_or_else(plain::PoisonError::into_inner)
    }

    /// Waits until no other has it.
    pub fn write(&self) -> AloneGuard<'_, T> {
        #[cfg(feature = "shuttle")]
        cost::lock();
        self.0.write().unwrap_or_else(plain::PoisonError::into_inner)
    }
}

/// The guard of a lock that is no scheduling point.
pub(crate) type PlainGuard<'a, T> = plain::MutexGuard<'a, T>;

/// A lock that is no scheduling point, for what is held for some instructions only.
#[derive(Debug)]
pub(crate) struct Plain<T>(plain::Mutex<T>);

impl<T> Plain<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(plain::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> PlainGuard<'_, T> {
        #[cfg(feature = "shuttle")]
        cost::lock();
        self.0.lock().unwrap_or_else(plain::PoisonError::into_inner)
    }
}

/// A scheduling point before a look at one of `core`'s atomics, if it is watched: what every allocation
/// looks at must not slow down the exploration of what never changes it.
#[derive(Debug)]
pub(crate) struct Point {
    #[cfg(feature = "shuttle")]
    watched: Option<AtomicBool>,
}

impl Point {
    pub(crate) fn new(_watched: bool) -> Self {
        Self {
            #[cfg(feature = "shuttle")]
            watched: _watched.then(|| AtomicBool::new(false)),
        }
    }

    /// Counts as a load, of no ordering.
    #[inline]
    pub(crate) fn pass(&self) {
        #[cfg(feature = "shuttle")]
        match &self.watched {
            Some(point) => drop(point.load(Ordering::Relaxed)),
            None => cost::load(Ordering::Relaxed),
        }
    }

    /// Counts as a store, of no ordering.
    #[inline]
    pub(crate) fn pass_store(&self) {
        #[cfg(feature = "shuttle")]
        match &self.watched {
            Some(point) => point.store(false, Ordering::Relaxed),
            None => cost::store(Ordering::Relaxed),
        }
    }
}

/// Lets others run: a scheduling point where there is no shared access to be one.
pub fn yield_now() {
    #[cfg(feature = "shuttle")]
    shuttle::thread::yield_now();
    #[cfg(all(feature = "std", not(feature = "shuttle")))]
    std::thread::yield_now();
    #[cfg(not(feature = "std"))]
    core::hint::spin_loop();
}

/// What is used of `std::sync`, by spinning.
#[cfg(not(feature = "std"))]
#[expect(unreachable_pub, reason = "all but OnceLock is for this file")]
mod spinning {
    pub use spin::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// `std::sync::Mutex`, which is never poisoned.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(spin::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(spin::Mutex::new(value))
        }

        pub fn lock(&self) -> Result<MutexGuard<'_, T>, PoisonError<MutexGuard<'_, T>>> {
            Ok(self.0.lock())
        }

        pub fn try_lock(&self) -> Result<MutexGuard<'_, T>, TryLockError<MutexGuard<'_, T>>> {
            self.0.try_lock().ok_or(TryLockError::WouldBlock)
        }
    }

    /// `std::sync::RwLock`, which is never poisoned.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(spin::RwLock<T>);

    impl<T> RwLock<T> {
        pub fn new(value: T) -> Self {
            Self(spin::RwLock::new(value))
        }

        pub fn read(&self) -> Result<RwLockReadGuard<'_, T>, PoisonError<RwLockReadGuard<'_, T>>> {
            Ok(self.0.read())
        }

        pub fn write(
            &self,
        ) -> Result<RwLockWriteGuard<'_, T>, PoisonError<RwLockWriteGuard<'_, T>>> {
            Ok(self.0.write())
        }
    }

    /// `std::sync::Condvar`, which returns from every wait at once.
    #[derive(Debug, Default)]
    pub struct Condvar;

    impl Condvar {
        pub fn wait(&self) {
            core::hint::spin_loop();
        }

        pub fn notify_all(&self) {}
    }

    /// `std::sync::PoisonError`, which never occurs.
    pub struct PoisonError<G>(G);

    impl<G> PoisonError<G> {
        pub fn into_inner(self) -> G {
            self.0
        }
    }

    /// `std::sync::TryLockError`.
    pub enum TryLockError<G> {
        #[expect(dead_code, reason = "as in std, whose locks can be poisoned")]
        Poisoned(PoisonError<G>),
        WouldBlock,
    }

    /// `std::sync::OnceLock`.
    #[derive(Debug)]
    pub struct OnceLock<T>(spin::Once<T>);

    impl<T> OnceLock<T> {
        /// Without a value.
        #[expect(clippy::new_without_default, reason = "as in std, whose Default is not used")]
        pub const fn new() -> Self {
            Self(spin::Once::new())
        }

        /// The value, if it is set.
        pub fn get(&self) -> Option<&T> {
            self.0.get()
        }

        /// Sets the value.
        ///
        /// # Errors
        /// Returns `value` if there is one already.
        pub fn set(&self, value: T) -> Result<(), T> {
            let mut value = Some(value);
            self.0.call_once(|| match value.take() {
                Some(value) => value,
                None => unreachable!("it is taken once"),
            });
            value.map_or(Ok(()), Err)
        }
    }
}
