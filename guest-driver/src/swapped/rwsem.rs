// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A lock that many read and one writes (`struct rw_semaphore`): readers come behind a writer that waits.
//!
//! A wait that cannot end is found by [`Waits`], if there is one.

use alloc::format;
use alloc::sync::Arc;

use crate::sync::{self, AtomicU64, Ordering};
use crate::waits::{Party, Thing, Waits};

/// A writer has it.
const WRITER: u64 = 1 << 63;
/// A writer waits for it.
const WAITING: u64 = 1 << 62;

/// Who watches the waits for one lock.
#[derive(Debug)]
struct Watched {
    waits: Arc<Waits>,
    /// Held by its readers and its writer.
    lock: Thing,
    /// Held by a writer that waits: readers come after it.
    turn: Thing,
}

/// A lock that many read and one writes. Writers must be one at a time, by a lock of their own.
#[derive(Debug, Default)]
pub struct RwSem {
    /// Readers, and the two bits.
    count: AtomicU64,
    watched: Option<Watched>,
}

impl RwSem {
    /// Without a watch.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose waits are watched, of this name.
    pub fn watched(waits: Arc<Waits>, name: &str) -> Self {
        let (lock, turn) = (waits.thing(name), waits.thing(format!("its turn at {name}")));
        Self { count: AtomicU64::new(0), watched: Some(Watched { waits, lock, turn }) }
    }

    /// Waits until no writer has it or waits for it (`down_read`).
    ///
    /// # Panics
    /// With `deadlock: `, if that can never be.
    pub fn read(&self, party: Option<Party>) {
        if self.count.fetch_add(1, Ordering::Acquire) & (WRITER | WAITING) != 0 {
            self.read_slowly(party);
        }
        self.watch(party, |Watched { waits, lock, .. }, party| waits.hold(party, *lock));
    }

    #[cold]
    fn read_slowly(&self, party: Option<Party>) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.watch(party, |Watched { waits, turn, .. }, party| waits.wait(party, *turn));
        let next = |count: u64| (count & (WRITER | WAITING) == 0).then_some(count + 1);
        while self.count.fetch_update(Ordering::Acquire, Ordering::Relaxed, next).is_err() {
            sync::yield_now();
        }
        self.watch(party, |Watched { waits, .. }, party| waits.waited(party));
    }

    /// It is read no longer (`up_read`).
    pub fn read_done(&self, party: Option<Party>) {
        self.watch(party, |Watched { waits, lock, .. }, party| waits.release(party, *lock));
        self.count.fetch_sub(1, Ordering::Release);
    }

    /// Waits until none has it (`down_write`).
    ///
    /// # Panics
    /// With `deadlock: `, if that can never be.
    pub fn write(&self, party: Option<Party>) {
        self.wait_to_write(party);
        let take = |count: u64| (count == WAITING).then_some(WRITER);
        while self.count.fetch_update(Ordering::Acquire, Ordering::Relaxed, take).is_err() {
            sync::yield_now();
        }
        self.watch(party, |Watched { waits, lock, .. }, party| {
            waits.waited(party);
            waits.hold(party, *lock);
        });
    }

    /// Readers come after the writer from now on.
    pub(crate) fn wait_to_write(&self, party: Option<Party>) {
        self.count.fetch_or(WAITING, Ordering::Relaxed);
        self.watch(party, |Watched { waits, lock, turn }, party| {
            waits.hold(party, *turn);
            waits.wait(party, *lock);
        });
    }

    /// It is written no longer (`up_write`).
    pub fn write_done(&self, party: Option<Party>) {
        self.watch(party, |Watched { waits, lock, turn }, party| {
            waits.release(party, *lock);
            waits.release(party, *turn);
        });
        self.count.fetch_and(!WRITER, Ordering::Release);
    }

    fn watch(&self, party: Option<Party>, of: impl FnOnce(&Watched, Party)) {
        if let (Some(watched), Some(party)) = (&self.watched, party) {
            of(watched, party);
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64 as Plain;

    #[test]
    fn writer_has_it_alone() {
        let (lock, sum) = (RwSem::new(), [Plain::new(0), Plain::new(0)]);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        lock.read(None);
                        let [first, second] = sum.each_ref().map(|of| of.load(Ordering::Relaxed));
                        assert_eq!(first, second);
                        lock.read_done(None);
                    }
                });
            }
            for round in 0..2_000 {
                lock.write(None);
                sum.iter().for_each(|of| of.store(round, Ordering::Relaxed));
                lock.write_done(None);
            }
        });
    }

    /// What a task does that waits for memory with the lock held, and takes it once more for that.
    #[test]
    #[should_panic(expected = "deadlock: the task waits for its turn at the zonelists, which the \
                               writer holds, who waits for the zonelists, which the task holds")]
    fn read_again_behind_a_writer_is_a_deadlock() {
        let waits = Arc::new(Waits::new());
        let (task, writer) = (waits.party("the task"), waits.party("the writer"));
        let lock = RwSem::watched(Arc::clone(&waits), "the zonelists");
        lock.read(Some(task));
        lock.wait_to_write(Some(writer));
        lock.read(Some(task));
    }

    #[test]
    fn reader_again_without_a_writer_is_none() {
        let waits = Arc::new(Waits::new());
        let task = Some(waits.party("the task"));
        let lock = RwSem::watched(waits, "the zonelists");
        lock.read(task);
        lock.read(task);
        lock.read_done(task);
        lock.read_done(task);
        lock.write(task);
        lock.write_done(task);
        assert_eq!(lock.count.load(Ordering::Relaxed), 0);
    }
}
