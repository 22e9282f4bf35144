// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A reader-writer lock for a reader that comes back again and again.

use crate::lock::atomic::{AtomicUsize, Ordering};
use crate::lock::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, yield_now};

/// A lock whose readers let writers go first.
///
/// `RwLock` wakes a waiting writer when a reader leaves, but a reader that comes back at once is
/// there before the writer is awake: a worker that always has work would keep the control thread
/// waiting for as long as its guest likes. Here a writer waits for those who read when it comes,
/// and for no later one. A thread that reads must not ask to read again.
#[derive(Debug, Default)]
pub(crate) struct WritersFirst<T> {
    waiting: AtomicUsize,
    lock: RwLock<T>,
}

impl<T> WritersFirst<T> {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        while self.waiting.load(Ordering::Acquire) > 0 {
            yield_now();
        }
        self.lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let guard = self.lock.write().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        guard
    }

    /// Whether a writer waits.
    pub(crate) fn writer_waits(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }
}

#[cfg(test)]
#[cfg(not(interleavings))]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    #[test]
    fn returning_reader_does_not_overtake_a_writer() {
        let lock = &WritersFirst::<u32>::default();
        thread::scope(|scope| {
            let (inside, entered) = channel();
            let reader = scope.spawn(move || {
                // The first visit lasts until the writer waits, and then this comes back at once.
                let first = lock.read();
                inside.send(()).unwrap();
                while lock.waiting.load(Ordering::Acquire) == 0 {
                    thread::yield_now();
                }
                drop(first);
                *lock.read()
            });
            entered.recv().unwrap();
            *lock.write() = 1;
            assert_eq!(reader.join().unwrap(), 1);
        });
    }
}
